use std::time::Duration;

use http::StatusCode;
use http::header::RETRY_AFTER;
use serde::Deserialize;

use crate::error::{Detail, OriginError, ProtocolFault};
use crate::patience::Patience;
use crate::token::Target;
use crate::transport::Reply;

/// Registries answer with a few hundred bytes; web servers before them with a page that says nothing.
const MAX_ERROR_BODY_BYTES: usize = 4096;
const MAX_DETAIL_CHARS: usize = 200;
/// Longer than a digest with its algorithm; tokens and signed URLs are longer still.
const MAX_WORD_CHARS: usize = 72;

/// Distribution specification, "Error codes".
#[derive(Deserialize)]
struct ErrorBody {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    code: Option<String>,
    message: Option<String>,
}

/// Who gave an answer: their 401 and 404 mean different things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaker {
    Registry,
    TokenService,
    /// Where the registry redirected to.
    Storage,
}

/// Turns an unsuccessful answer into the error that says what to do about it.
pub(crate) async fn refusal(
    target: Target<'_>,
    speaker: Speaker,
    reply: Reply,
    patience: &mut Patience,
) -> OriginError {
    let Reply { host, status, headers, body } = reply;
    let registry = target.endpoint.name.clone();
    let repository = target.repository.to_owned();
    let retry_after = headers.get(RETRY_AFTER).and_then(|value| seconds(value.to_str().ok()?));
    let body = body.read_whole(MAX_ERROR_BODY_BYTES, patience).await.unwrap_or_default();
    let detail = detail(&body);
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if speaker != Speaker::Storage => {
            OriginError::Unauthorized { registry, repository, status, detail }
        }
        StatusCode::NOT_FOUND if speaker == Speaker::Registry => {
            OriginError::NotFound { registry, repository, detail }
        }
        StatusCode::TOO_MANY_REQUESTS => OriginError::RateLimited { host, retry_after, detail },
        status if status.is_client_error() || status.is_server_error() => {
            OriginError::Refused { host, status, retry_after, detail }
        }
        status => OriginError::Protocol { host, fault: ProtocolFault::Status(status) },
    }
}

/// Delay in seconds (RFC 9110, section 10.2.3); the other form, a date, no registry is known to send.
fn seconds(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_secs)
}

/// The first error of the body that has a text, fit for a log: one line, no control characters, nothing long enough to
/// be a secret.
fn detail(body: &[u8]) -> Detail {
    let Ok(body) = serde_json::from_slice::<ErrorBody>(body) else { return Detail::default() };
    let text = body.errors.into_iter().map(|entry| match (entry.code, entry.message) {
        (Some(code), Some(message)) => format!("{code} {message}"),
        (code, message) => code.or(message).unwrap_or_default(),
    });
    let text = text.into_iter().find(|text| !text.trim().is_empty()).unwrap_or_default();
    let printable: String = text.chars().map(|c| if is_printable(c) { c } else { ' ' }).collect();
    let words = printable.split_whitespace().map(|word| {
        let hidden = word.chars().count() > MAX_WORD_CHARS || word.contains('?');
        if hidden { "[...]" } else { word }
    });
    Detail(words.collect::<Vec<_>>().join(" ").chars().take(MAX_DETAIL_CHARS).collect())
}

/// Also without the marks that change the direction of text, or that nobody sees.
fn is_printable(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_safe_to_print() {
        let token = "x".repeat(100);
        let long = "word ".repeat(100);
        let cases = [
            (r#"{"errors":[{"code":"DENIED","message":"no access"}]}"#.to_owned(), "DENIED no access"),
            (r#"{"errors":[{"code":"DENIED","message":null,"detail":{"a":1}}]}"#.into(), "DENIED"),
            (r#"{"errors":[{"message":"a\u001b[31m\nb\u202ec"}]}"#.into(), "a [31m b c"),
            (format!(r#"{{"errors":[{{"message":"token {token} expired"}}]}}"#), "token [...] expired"),
            (r#"{"errors":[{"message":"see https://s/?sig=1"}]}"#.into(), "see [...]"),
            (r#"{"errors":[{},{"code":"X"}]}"#.into(), "X"),
            (r#"{"errors":[]}"#.into(), ""),
            ("<html>no</html>".into(), ""),
            (String::new(), ""),
            (format!(r#"{{"errors":[{{"message":"{long}"}}]}}"#), &long[..200]),
        ];
        for (body, expected) in cases {
            assert_eq!(detail(body.as_bytes()).0, *expected, "{body}");
        }
    }

    #[test]
    fn retry_after() {
        let cases = [("7", Some(7)), (" 0 ", Some(0)), ("-1", None), ("Fri, 31 Dec", None), ("", None)];
        for (text, expected) in cases {
            assert_eq!(seconds(text), expected.map(Duration::from_secs), "{text:?}");
        }
    }
}
