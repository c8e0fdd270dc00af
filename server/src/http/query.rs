//! Query: the parameters behind a path. Unknown ones are ignored, wrong values are refused.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use percent_encoding::percent_decode_str;
use turnwire_protocol::failure::Failure;

/// What follows the `?`, if anything does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query<'a>(&'a str);

impl<'a> Query<'a> {
    pub(super) fn of(uri: &'a hyper::Uri) -> Self {
        Self(uri.query().unwrap_or_default())
    }

    /// The value of a parameter, decoded; of several, the last one.
    pub(super) fn get(self, name: &str) -> Option<Cow<'a, str>> {
        let mut parameters = self.0.split('&').filter_map(|text| text.split_once('='));
        let (_, value) = parameters.rfind(|(written, _)| decode(written) == name)?;
        Some(decode(value))
    }

    pub(super) fn flag(self, name: &str) -> Result<bool, Failure> {
        match self.get(name).as_deref() {
            None | Some("" | "false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(_) => Err(Failure::invalid_value(name, "it must be 'true' or 'false'")),
        }
    }

    pub(super) fn integer(
        self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, Failure> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match value.parse::<i64>() {
            Ok(number) if number < *range.start() => {
                Err(Failure::integer_below_min_value(name, *range.start()))
            }
            Ok(number) if number > *range.end() => {
                Err(Failure::integer_above_max_value(name, *range.end()))
            }
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Failure::invalid_value(name, "it must be an integer")),
        }
    }
}

fn decode(text: &str) -> Cow<'_, str> {
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        return Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned());
    }
    percent_decode_str(text).decode_utf8_lossy()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_the_last_one_counts() {
        let query = Query("limit=1&after=a%26b+c&limit=2&include%5B%5D=x&stream");
        assert_eq!(query.get("after").as_deref(), Some("a&b c"));
        assert_eq!(query.get("include[]").as_deref(), Some("x"));
        assert_eq!(query.get("stream"), None);
        assert_eq!(query.integer("limit", 1..=100), Ok(Some(2)));
        assert_eq!(query.integer("other", 1..=100), Ok(None));
    }

    #[test]
    fn a_wrong_value_is_refused_by_its_name() {
        for (text, code) in [
            ("n=0", "integer_below_min_value"),
            ("n=101", "integer_above_max_value"),
            ("n=many", "invalid_value"),
            ("n=", "invalid_value"),
        ] {
            let failure = Query(text).integer("n", 1..=100).unwrap_err();
            assert_eq!((failure.code, failure.param.as_deref()), (code, Some("n")));
        }
        assert_eq!(Query("s=true").flag("s"), Ok(true));
        assert_eq!(Query("s=false").flag("s"), Ok(false));
        assert_eq!(
            Query("s=maybe").flag("s").unwrap_err().param.as_deref(),
            Some("s")
        );
    }
}
