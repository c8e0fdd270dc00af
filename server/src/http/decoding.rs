//! Decoding: a request body as its `Content-Encoding` says, step by step and within a limit.
//!
//! Nothing is ever made beyond the limit, so a few compressed kilobytes that stand for gigabytes
//! cost no more memory than a body that says the same openly.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use hyper::HeaderMap;
use hyper::header::CONTENT_ENCODING;
use turnwire_protocol::failure::Failure;
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, Operation};

use super::answer;

/// What one step makes at most, give or take what the decoders hold back.
const STEP_BYTES: usize = 32 << 10;

/// Base-2 logarithm of the largest zstd window: the 8 MiB that RFC 9659 grants to HTTP.
const ZSTD_WINDOW_LOG: u32 = 23;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

/// Why a body does not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    TooLarge,
    /// Cut short, or not what the encoding says.
    Malformed,
}

/// A body on its way from what was sent to what was meant.
pub(super) struct Decoding(Decoder);

enum Decoder {
    Identity(Collected),
    Gzip(Box<MultiGzDecoder<Collected>>),
    Zstd {
        decoder: ZstdDecoder<'static>,
        /// The last frame is complete.
        ended: bool,
        collected: Collected,
    },
}

/// Bytes up to a limit; writing more is an error.
struct Collected {
    bytes: Vec<u8>,
    limit: usize,
    overflowed: bool,
}

impl Encoding {
    /// At most one encoding may be named. Stacks of them are in use nowhere.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Failure> {
        let mut encoding = Self::Identity;
        for value in headers.get_all(CONTENT_ENCODING) {
            let value = String::from_utf8_lossy(value.as_bytes());
            for name in value.split(',').map(str::trim) {
                let named = match name.to_ascii_lowercase().as_str() {
                    "" | "identity" => continue,
                    "gzip" | "x-gzip" => Self::Gzip,
                    "zstd" => Self::Zstd,
                    _ => return Err(answer::unsupported_encoding(&value)),
                };
                if encoding != Self::Identity {
                    return Err(answer::unsupported_encoding(&value));
                }
                encoding = named;
            }
        }
        Ok(encoding)
    }

    /// What to tell a client whose body does not decode.
    pub(super) fn refusal(self, problem: Problem, limit: usize) -> Failure {
        match (problem, self) {
            (Problem::TooLarge, _) => Failure::request_too_large(limit),
            (Problem::Malformed, Self::Identity) => answer::broken_body(),
            (Problem::Malformed, Self::Gzip) => answer::undecodable_body("gzip"),
            (Problem::Malformed, Self::Zstd) => {
                answer::undecodable_body("zstd with a window of at most 8 MiB")
            }
        }
    }
}

impl Decoding {
    /// Fails if there is no memory for a decoder.
    pub(super) fn new(encoding: Encoding, limit: usize) -> io::Result<Self> {
        let collected = Collected {
            bytes: Vec::new(),
            limit,
            overflowed: false,
        };
        Ok(Self(match encoding {
            Encoding::Identity => Decoder::Identity(collected),
            Encoding::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(collected))),
            Encoding::Zstd => {
                let mut decoder = ZstdDecoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG))?;
                Decoder::Zstd {
                    decoder,
                    ended: false,
                    collected,
                }
            }
        }))
    }

    /// Takes some of `input` and tells how much: nothing only if it still makes what came before.
    /// Makes about [`STEP_BYTES`] at most, unless the body is not encoded at all.
    pub(super) fn step(&mut self, input: &[u8]) -> Result<usize, Problem> {
        let taken = match &mut self.0 {
            Decoder::Identity(collected) => {
                collected.take(input)?;
                input.len()
            }
            Decoder::Gzip(decoder) => match decoder.write(input) {
                Ok(0) => return Err(Problem::Malformed),
                Ok(taken) => taken,
                Err(_) => return Err(decoder.get_ref().problem()),
            },
            Decoder::Zstd {
                decoder,
                ended,
                collected,
            } => {
                let (taken, _) = step_zstd(decoder, input, ended, collected)?;
                taken
            }
        };
        Ok(taken)
    }

    /// Bytes made so far.
    pub(super) fn made(&self) -> usize {
        match &self.0 {
            Decoder::Identity(collected) | Decoder::Zstd { collected, .. } => collected.bytes.len(),
            Decoder::Gzip(decoder) => decoder.get_ref().bytes.len(),
        }
    }

    /// The whole body, once everything that was sent has been taken.
    pub(super) fn finish(self) -> Result<Bytes, Problem> {
        let collected = match self.0 {
            Decoder::Identity(collected) => collected,
            Decoder::Gzip(mut decoder) => {
                if decoder.try_finish().is_err() {
                    return Err(decoder.get_ref().problem());
                }
                decoder.finish().map_err(|_| Problem::Malformed)?
            }
            Decoder::Zstd {
                mut decoder,
                mut ended,
                mut collected,
            } => {
                // What did not fit into the last step: one block at most.
                let mut more = !ended;
                while more {
                    let (_, made) = step_zstd(&mut decoder, &[], &mut ended, &mut collected)?;
                    more = !ended && made > 0;
                }
                if !ended {
                    return Err(Problem::Malformed);
                }
                collected
            }
        };
        let mut bytes = collected.bytes;
        // The items of a chain keep their message alive, so it should be no larger than it is.
        bytes.shrink_to_fit();
        Ok(bytes.into())
    }
}

/// Gives out how much was taken and how much was made.
fn step_zstd(
    decoder: &mut ZstdDecoder<'_>,
    input: &[u8],
    ended: &mut bool,
    collected: &mut Collected,
) -> Result<(usize, usize), Problem> {
    let mut made = [0; STEP_BYTES];
    let status = decoder.run_on_buffers(input, &mut made);
    let status = status.map_err(|_| Problem::Malformed)?;
    *ended = status.remaining == 0;
    collected.take(&made[..status.bytes_written])?;
    Ok((status.bytes_read, status.bytes_written))
}

impl Collected {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        self.write_all(bytes).map_err(|_| self.problem())
    }

    fn problem(&self) -> Problem {
        if self.overflowed {
            Problem::TooLarge
        } else {
            Problem::Malformed
        }
    }
}

impl Write for Collected {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.bytes.len() {
            self.overflowed = true;
            self.bytes = Vec::new();
            self.limit = 0;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let needed = self.bytes.len() + bytes.len();
        if needed > self.bytes.capacity() {
            // Doubling, but never beyond the limit.
            let capacity = needed.max(2 * self.bytes.capacity()).min(self.limit);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use hyper::header::HeaderValue;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 3).unwrap()
    }

    /// Decodes what comes in pieces of `piece` bytes.
    fn decode(
        encoding: Encoding,
        sent: &[u8],
        piece: usize,
        limit: usize,
    ) -> Result<Bytes, Problem> {
        let mut decoding = Decoding::new(encoding, limit).unwrap();
        for mut piece in sent.chunks(piece) {
            while !piece.is_empty() {
                let before = decoding.made();
                let taken = decoding.step(piece)?;
                assert!(taken > 0 || decoding.made() > before);
                assert!(encoding == Encoding::Identity || decoding.made() - before <= STEP_BYTES);
                piece = &piece[taken..];
            }
        }
        decoding.finish()
    }

    fn body() -> Vec<u8> {
        (0..30_000_u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect()
    }

    #[test]
    fn what_was_encoded_comes_out_however_it_is_cut() {
        let body = body();
        for (encoding, sent) in [
            (Encoding::Identity, body.clone()),
            (Encoding::Gzip, gzip(&body)),
            (Encoding::Zstd, zstd(&body)),
            (
                Encoding::Gzip,
                [gzip(&body[..9]), gzip(&body[9..])].concat(),
            ),
            (
                Encoding::Zstd,
                [zstd(&body[..9]), zstd(&body[9..])].concat(),
            ),
        ] {
            for piece in [1, 1000, usize::MAX] {
                let decoded = decode(encoding, &sent, piece, body.len());
                assert!(decoded.unwrap() == body, "{encoding:?} {piece}");
            }
            let limit = body.len() - 1;
            let decoded = decode(encoding, &sent, usize::MAX, limit);
            assert_eq!(decoded, Err(Problem::TooLarge), "{encoding:?}");
        }
    }

    #[test]
    fn what_is_cut_short_or_damaged_is_malformed() {
        let body = body();
        for (encoding, sent) in [(Encoding::Gzip, gzip(&body)), (Encoding::Zstd, zstd(&body))] {
            for end in [0, 1, 9, sent.len() / 2, sent.len() - 1] {
                let decoded = decode(encoding, &sent[..end], usize::MAX, body.len());
                assert_eq!(decoded, Err(Problem::Malformed), "{encoding:?} {end}");
            }
            let trailing = [&sent[..], b"trailing"].concat();
            let decoded = decode(encoding, &trailing, usize::MAX, body.len());
            assert_eq!(decoded, Err(Problem::Malformed), "{encoding:?}");
            let decoded = decode(encoding, b"{\"model\":\"x\"}", usize::MAX, body.len());
            assert_eq!(decoded, Err(Problem::Malformed), "{encoding:?}");
        }
    }

    #[test]
    fn a_bomb_ends_at_the_limit() {
        let zeros = vec![0; 64 << 20];
        for (encoding, bomb) in [
            (Encoding::Gzip, gzip(&zeros)),
            (Encoding::Zstd, zstd(&zeros)),
        ] {
            let mut decoding = Decoding::new(encoding, 1 << 20).unwrap();
            let mut left = &bomb[..];
            let mut most = 0;
            let problem = loop {
                match decoding.step(left) {
                    Ok(taken) => left = &left[taken..],
                    Err(problem) => break problem,
                }
                most = most.max(decoding.made());
            };
            assert_eq!(problem, Problem::TooLarge);
            assert!(most <= 1 << 20 && decoding.made() == 0);
            assert!(!left.is_empty(), "it is not decoded to its end");
        }
    }

    #[test]
    fn a_zstd_window_beyond_what_http_allows_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(ZSTD_WINDOW_LOG + 1).unwrap();
        encoder.write_all(b"small").unwrap();
        let sent = encoder.finish().unwrap();
        let decoded = decode(Encoding::Zstd, &sent, usize::MAX, 1000);
        assert_eq!(decoded, Err(Problem::Malformed));
    }

    #[test]
    fn one_encoding_at_most_is_taken() {
        for (values, expected) in [
            (&[][..], Some(Encoding::Identity)),
            (&["identity"], Some(Encoding::Identity)),
            (&["GZIP"], Some(Encoding::Gzip)),
            (&["x-gzip"], Some(Encoding::Gzip)),
            (&["identity, zstd "], Some(Encoding::Zstd)),
            (&["gzip, zstd"], None),
            (&["gzip", "gzip"], None),
            (&["br"], None),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(CONTENT_ENCODING, HeaderValue::from_static(value));
            }
            assert_eq!(Encoding::of(&headers).ok(), expected, "{values:?}");
        }
    }
}
