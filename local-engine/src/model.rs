//! Model: the weights, the vocabulary, and a context made of them.
//!
//! This file and the [`Cells`] below are the only ones that call llama.cpp. It aborts the
//! process where Rust would return an error, so every number is checked before it gets there.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::context::session::{LlamaStateSeqFlags, SeqState};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token_type::LlamaTokenAttr;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use turnwire_prompt::format::{ChatFormat, MARKERS, TemplateError};
use turnwire_prompt::grammar::Grammar;
use turnwire_prompt::{Bounds, SpecialTokens, Text};

use crate::cache::{Cells, Seq, Token};
use crate::engine::Options;

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{0}: no such file")]
    NoSuchFile(PathBuf),
    #[error("{0}: not a GGUF file (it does not begin with \"GGUF\")")]
    NotGguf(PathBuf),
    #[error("{0}: llama.cpp cannot load this model; its log says why (RUST_LOG=llama-cpp-2=info)")]
    Refused(PathBuf),
    #[error("{0}: recurrent and hybrid models cannot be forked or rewound, and are not served yet")]
    Recurrent(PathBuf),
    #[error("{0}: an embedding or encoder model, not a chat model")]
    NotAChatModel(PathBuf),
    #[error("no context of {cells} cells could be made: lower --kv-cells ({mib} MiB are needed)")]
    Context { cells: u32, mib: u64 },
    #[error("{0}: {1}")]
    Template(PathBuf, TemplateError),
    #[error("{0}: no grammars for its vocabulary: {1}")]
    Grammar(PathBuf, String),
    #[error("this CPU lacks {0}, which the embedded engine is built for")]
    Cpu(&'static str),
    #[error("the engine thread could not be started: {0}")]
    Thread(std::io::Error),
}

/// A loaded model. Shared by the engine thread and whoever tokenises.
pub(crate) struct Model {
    llama: LlamaModel,
    grammars: ParserFactory,
    pub(crate) format: ChatFormat,
    /// The most tokens one conversation may have.
    pub(crate) context: u32,
    /// Cells of the cache, at least `context`.
    pub(crate) cells: u32,
    /// Tokens of the vocabulary.
    vocabulary: usize,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("context", &self.context)
            .field("cells", &self.cells)
            .finish()
    }
}

/// Models of fewer parameters than this do not know when to end a string or a list.
const SMALL: u64 = 1_000_000_000;
/// Cells of a cache that nobody sized: more would rarely be used on the machines this runs on.
const DEFAULT_CELLS: u32 = 32 * 1024;
/// A conversation shorter than this is of no use to an agent.
const FEWEST_CELLS: u32 = 512;
/// No machine has room for more, and a few times as many can still be counted with 32 bits.
const MOST_CELLS: u32 = 1 << 30;

fn backend() -> &'static LlamaBackend {
    static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
    BACKEND.get_or_init(|| {
        llama_cpp_2::send_logs_to_tracing(llama_cpp_2::LogOptions::default());
        LlamaBackend::init().expect("the only initialisation in this process")
    })
}

impl Model {
    pub(crate) fn load(path: &Path, options: &Options) -> Result<Self, LoadError> {
        check_cpu()?;
        check_file(path)?;
        let params = LlamaModelParams::default().with_n_gpu_layers(options.gpu_layers);
        let llama = LlamaModel::load_from_file(backend(), path, &params)
            .map_err(|_| LoadError::Refused(path.into()))?;
        if llama.is_recurrent() || llama.is_hybrid() {
            return Err(LoadError::Recurrent(path.into()));
        }
        if llama.n_ctx_train() == 0 || llama.n_vocab() <= 0 {
            return Err(LoadError::NotAChatModel(path.into()));
        }
        let cells = cells(&llama, options);
        let template = llama.meta_val_str("tokenizer.chat_template").ok();
        let tokens = special_tokens(&llama, template.as_deref());
        let format = ChatFormat::new(template.as_deref(), tokens)
            .map_err(|error| LoadError::Template(path.into(), error))?
            .with_bounds(if llama.n_params() < SMALL {
                Bounds::TIGHT
            } else {
                Bounds::default()
            });
        let vocabulary = LlamaSampler::llguidance_tok_env(&llama);
        let mut grammars = ParserFactory::new_simple(&vocabulary)
            .map_err(|error| LoadError::Grammar(path.into(), error.to_string()))?;
        // Its verbose errors quote what was generated, and end up in messages and logs.
        grammars.quiet().limits_mut().verbose_errors = false;
        Ok(Self {
            context: llama.n_ctx_train().min(cells),
            cells,
            vocabulary: llama.n_vocab() as usize,
            llama,
            grammars,
            format,
        })
    }

    /// The `general.name` of the model file, or its file name without quantisation.
    pub(crate) fn name(&self, path: &Path) -> String {
        let stem = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or("local");
        let quantised = |part: &str| {
            let upper = part.to_ascii_uppercase();
            [
                "Q2_", "Q3_", "Q4_", "Q5_", "Q6_", "Q8_", "IQ", "F16", "BF16", "F32",
            ]
            .iter()
            .any(|q| upper.starts_with(q))
        };
        match stem.rsplit_once(['.', '-']) {
            Some((name, last)) if quantised(last) => name.to_owned(),
            _ => stem.to_owned(),
        }
    }

    pub(crate) fn tokenize(&self, text: &Text) -> Vec<Token> {
        let vocab = self.llama.vocab();
        let pieces = text.pieces.iter().filter(|piece| !piece.is_empty());
        pieces
            .flat_map(|piece| vocab.tokenize(piece.as_bytes(), false, true))
            .map(|token| token.0)
            .collect()
    }

    /// The bytes of a token as output; none for tokens that only steer the model.
    pub(crate) fn piece(&self, token: Token, buffer: &mut Vec<u8>) {
        buffer.clear();
        let vocab = self.llama.vocab();
        vocab.token_to_piece_into(LlamaToken(token), buffer, false, None);
        if buffer.is_empty() && !vocab.is_eog(LlamaToken(token)) {
            let mut text = Vec::new();
            vocab.token_to_piece_into(LlamaToken(token), &mut text, true, None);
            if std::str::from_utf8(&text).is_ok_and(|text| MARKERS.contains(&text)) {
                *buffer = text;
            }
        }
    }

    pub(crate) fn ends_generation(&self, token: Token) -> bool {
        self.llama.vocab().is_eog(LlamaToken(token))
    }

    /// A matcher for a grammar, or what is wrong with it.
    pub(crate) fn matcher(&self, grammar: &Grammar) -> Result<Matcher, String> {
        let mut top_level = TopLevelGrammar::from_lark(grammar.lark.clone());
        let nested = grammar.nested.iter().map(|nested| GrammarWithLexer {
            name: Some(nested.name.clone()),
            lark_grammar: Some(nested.lark.clone()),
            ..GrammarWithLexer::default()
        });
        top_level.grammars.extend(nested);
        let matcher = Matcher::new(self.grammars.create_parser(top_level));
        match matcher.get_error() {
            Some(error) => Err(error),
            None => Ok(matcher),
        }
    }

    /// A context with empty cells, for one thread.
    pub(crate) fn context(&self, options: &Options) -> Result<Context<'_>, LoadError> {
        // Every sequence must find a row for its logits in one batch, or llama.cpp aborts.
        let batch = options
            .batch_tokens
            .clamp(32, 4096)
            .max(options.sequences());
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(self.cells))
            .with_n_batch(batch)
            .with_n_ubatch(batch)
            .with_n_seq_max(options.sequences())
            .with_kv_unified(true)
            .with_swa_full(true)
            .with_n_threads(options.threads())
            .with_n_threads_batch(options.threads());
        let llama = self
            .llama
            .new_context(backend(), params)
            .map_err(|_| LoadError::Context {
                cells: self.cells,
                mib: (u64::from(self.cells) * bytes_per_cell(&self.llama)) >> 20,
            })?;
        let batch = llama.n_batch();
        Ok(Context {
            llama,
            batch: LlamaBatch::new(batch as usize, 1),
            batch_tokens: batch as usize,
            vocabulary: self.vocabulary,
        })
    }
}

/// The default build uses AVX2; without it the first prefill would die of an illegal instruction.
fn check_cpu() -> Result<(), LoadError> {
    #[cfg(target_arch = "x86_64")]
    for (present, name) in [
        (std::arch::is_x86_feature_detected!("avx2"), "AVX2"),
        (std::arch::is_x86_feature_detected!("fma"), "FMA"),
        (std::arch::is_x86_feature_detected!("f16c"), "F16C"),
    ] {
        if !present {
            return Err(LoadError::Cpu(name));
        }
    }
    Ok(())
}

fn check_file(path: &Path) -> Result<(), LoadError> {
    use std::io::Read;
    let mut magic = [0; 4];
    let mut file = std::fs::File::open(path).map_err(|_| LoadError::NoSuchFile(path.into()))?;
    match file.read_exact(&mut magic) {
        Ok(()) if &magic == b"GGUF" => Ok(()),
        _ => Err(LoadError::NotGguf(path.into())),
    }
}

fn special_tokens(llama: &LlamaModel, template: Option<&str>) -> SpecialTokens {
    let vocab = llama.vocab();
    let text = |token: LlamaToken| {
        (token.0 >= 0)
            .then(|| String::from_utf8(vocab.token_to_piece(token, true, None)).ok())
            .flatten()
    };
    let texts = |attrs: LlamaTokenAttr| {
        (0..llama.n_vocab())
            .map(LlamaToken)
            .filter(|&token| vocab.attr(token).contains(attrs))
            .filter_map(text)
            .filter(|text| !text.is_empty())
            .collect::<Vec<_>>()
    };
    // What llama.cpp cuts out of a text before it looks for words. Of a user-defined token it
    // makes text even where control tokens are left out, and so it is text to a grammar.
    let mut control = texts(LlamaTokenAttr::Control);
    control.extend(texts(LlamaTokenAttr::Unknown));
    let user_defined = texts(LlamaTokenAttr::UserDefined);
    let (eos, eot) = (text(vocab.eos()), text(vocab.eot()));
    // Either may end a turn: of ChatML it is usually EOS, of Llama 3 EOT. The template knows.
    let ends_turns = |token: &&String| template.is_some_and(|text| text.contains(token.as_str()));
    let end_of_turn = [&eos, &eot]
        .into_iter()
        .flatten()
        .find(ends_turns)
        .or(eos.as_ref());
    SpecialTokens {
        bos: vocab.should_add_bos().then(|| text(vocab.bos())).flatten(),
        end_of_turn: end_of_turn.cloned().unwrap_or_default(),
        eos,
        control,
        user_defined,
    }
}

fn cells(llama: &LlamaModel, options: &Options) -> u32 {
    let trained = llama.n_ctx_train();
    let affordable = memory_bytes().map_or(u64::from(DEFAULT_CELLS), |all| {
        all / 4 / bytes_per_cell(llama)
    });
    let default = u64::from(trained.max(DEFAULT_CELLS)).min(affordable) as u32;
    whole_cells(options.kv_cells.unwrap_or(default))
}

/// llama.cpp pads the context to a multiple of 256; a size that is one already stays what it is.
fn whole_cells(wanted: u32) -> u32 {
    wanted.clamp(FEWEST_CELLS, MOST_CELLS).next_multiple_of(256)
}

/// Keys and values of one token in all layers, as 16-bit floats.
fn bytes_per_cell(llama: &LlamaModel) -> u64 {
    let heads = u64::from(llama.n_head().max(1));
    let head_size = llama.n_embd().max(1) as u64 / heads;
    (u64::from(llama.n_layer()) * u64::from(llama.n_head_kv()) * head_size * 2 * 2).max(1)
}

/// Memory of this machine, as far as it tells.
pub(crate) fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// A context of the model: its cells, and one batch that is filled and decoded again and again.
pub(crate) struct Context<'a> {
    llama: LlamaContext<'a>,
    batch: LlamaBatch<'static>,
    pub(crate) batch_tokens: usize,
    vocabulary: usize,
}

/// A batch could not be decoded. Its cells are as before.
#[derive(Debug, thiserror::Error)]
#[error("decode: {0}")]
pub(crate) struct DecodeFailed(String);

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("batch_tokens", &self.batch_tokens)
            .finish()
    }
}

impl Context<'_> {
    pub(crate) fn clear_batch(&mut self) {
        self.batch.clear();
    }

    /// Adds a token to the batch and says in which row its logits will be, if they are wanted.
    pub(crate) fn push(&mut self, token: Token, position: u32, seq: Seq, logits: bool) -> usize {
        let row = self.batch.n_tokens() as usize;
        assert!(row < self.batch_tokens, "the batch is full");
        assert!(
            (token as usize) < self.vocabulary,
            "token {token} is not in the vocabulary"
        );
        let position = i32::try_from(position).expect("a context has fewer than 2^31 cells");
        self.batch
            .add(LlamaToken(token), position, &[seq], logits)
            .expect("checked above");
        row
    }

    pub(crate) fn decode(&mut self) -> Result<(), DecodeFailed> {
        assert!(self.batch.n_tokens() > 0, "an empty batch");
        self.llama
            .decode(&mut self.batch)
            .map_err(|error| DecodeFailed(error.to_string()))
    }

    /// The logits behind the token in `row` of the last batch, which asked for them.
    pub(crate) fn logits(&self, row: usize) -> &[f32] {
        self.llama.get_logits_ith(row as i32)
    }
}

impl Cells for Context<'_> {
    type Saved = SeqState;

    fn share(&mut self, from: Seq, to: Seq, end: u32) {
        self.llama
            .kv_cache_seq_cp(from, to, Some(0), Some(end))
            .expect("positions below 2^31");
    }

    fn truncate(&mut self, seq: Seq, end: u32) {
        // Only models that are refused at load could not do this.
        let _ = self
            .llama
            .clear_kv_cache_seq(Some(seq as u32), Some(end), None);
    }

    fn save(&mut self, seq: Seq) -> Option<(SeqState, usize)> {
        let state = self
            .llama
            .state_seq_get(seq, LlamaStateSeqFlags::empty())
            .ok()?;
        let bytes = state.byte_len();
        Some((state, bytes))
    }

    fn restore(&mut self, saved: &SeqState, seq: Seq) -> bool {
        self.llama.state_seq_set(saved, seq).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_cells_becomes_one_that_can_be_asked_for() {
        assert_eq!(whole_cells(0), FEWEST_CELLS);
        assert_eq!(whole_cells(1_000), 1_024);
        assert_eq!(whole_cells(u32::MAX), MOST_CELLS);
    }
}
