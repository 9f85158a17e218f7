use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// Docker Hub's and the clouds' are below 300 bytes.
const MAX_CHALLENGE_BYTES: usize = 4096;
const MAX_CHALLENGES: usize = 8;
const MAX_PARAMETERS: usize = 16;

/// A way to authenticate that a registry offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    /// Distribution specification, "Token Authentication".
    Bearer(Bearer),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Bearer {
    pub realm: String,
    pub service: Option<String>,
    pub scope: Option<String>,
}

impl Challenge {
    /// The best offer of a 401: Bearer before Basic; none when there is neither.
    pub fn choose(headers: &HeaderMap) -> Option<Self> {
        let mut offers: Vec<_> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .take(MAX_CHALLENGES)
            .filter_map(|value| value.to_str().ok())
            .flat_map(parse)
            .collect();
        let bearer = offers.iter().position(|offer| matches!(offer, Self::Bearer(_)));
        if offers.is_empty() { None } else { Some(offers.swap_remove(bearer.unwrap_or(0))) }
    }
}

/// Reads one header (RFC 9110, section 11.6.1); what comes after a fault is left out, as are schemes that d7y does not
/// know and a Bearer without realm.
fn parse(text: &str) -> Vec<Challenge> {
    let mut offers = Vec::new();
    if text.len() > MAX_CHALLENGE_BYTES {
        return offers;
    }
    let mut rest = Cursor { text };
    for _ in 0..MAX_CHALLENGES {
        let Some(scheme) = rest.scheme() else { break };
        let (bearer, intact) = rest.parameters();
        if scheme.eq_ignore_ascii_case("basic") {
            offers.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer") && intact && !bearer.realm.is_empty() {
            offers.push(Challenge::Bearer(bearer));
        }
        if !intact {
            break;
        }
    }
    offers
}

/// The part of a header that is not yet read.
struct Cursor<'a> {
    text: &'a str,
}

impl<'a> Cursor<'a> {
    fn scheme(&mut self) -> Option<&'a str> {
        self.separator();
        let scheme = self.take(is_token);
        (!scheme.is_empty()).then_some(scheme)
    }

    /// The parameters up to the next challenge, and whether the text was well-formed up to there.
    fn parameters(&mut self) -> (Bearer, bool) {
        let mut bearer = Bearer::default();
        for _ in 0..MAX_PARAMETERS {
            let after_comma = self.separator();
            if self.text.is_empty() {
                return (bearer, true);
            }
            let start = self.text;
            let name = self.take(is_token);
            self.take(is_space);
            if name.is_empty() {
                return (bearer, false);
            }
            if self.value_follows() {
                let Some(value) = self.value() else { return (bearer, false) };
                bearer.set(name, value);
            } else if after_comma {
                self.text = start;
                return (bearer, true);
            } else {
                self.text = start;
                self.take(|c| c != ',');
            }
        }
        (bearer, false)
    }

    /// Eats the `=` of a parameter; the one or two at the end of a token68 are none.
    fn value_follows(&mut self) -> bool {
        let Some(rest) = self.text.strip_prefix('=') else { return false };
        let rest = rest.trim_start_matches(is_space);
        if rest.is_empty() || rest.starts_with(['=', ',']) {
            return false;
        }
        self.text = rest;
        true
    }

    /// A quoted string, or anything up to the next space or comma: some registries forget the quotes around a URL.
    fn value(&mut self) -> Option<String> {
        let Some(quoted) = self.text.strip_prefix('"') else {
            return Some(self.take(|c| !is_space(c) && c != ',').to_owned());
        };
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.text = &quoted[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(chars.next()?.1),
                c => value.push(c),
            }
        }
        None
    }

    /// Skips spaces and commas; says whether there was a comma.
    fn separator(&mut self) -> bool {
        self.take(|c| is_space(c) || c == ',').contains(',')
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let end = self.text.find(|c| !wanted(c)).unwrap_or(self.text.len());
        let (taken, rest) = self.text.split_at(end);
        self.text = rest;
        taken
    }
}

impl Bearer {
    fn set(&mut self, name: &str, value: String) {
        match name.to_ascii_lowercase().as_str() {
            "realm" => self.realm = value,
            "service" => self.service = Some(value),
            "scope" => self.scope = Some(value),
            _ => {}
        }
    }
}

fn is_space(c: char) -> bool {
    c == ' ' || c == '\t'
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: &str| text.to_owned();
        Challenge::Bearer(Bearer {
            realm: owned(realm),
            service: service.map(owned),
            scope: scope.map(owned),
        })
    }

    #[test]
    fn headers_as_registries_send_them_and_as_they_should_not() {
        let hub = || bearer("https://a/token", Some("s"), Some("repository:x/y:pull"));
        let plain = || bearer("https://a/token", None, None);
        let long = format!("Bearer realm=\"{}\"", "a".repeat(MAX_CHALLENGE_BYTES));
        let many = format!("Bearer {} realm=\"https://a/token\"", "x=1, ".repeat(MAX_PARAMETERS));
        let cases: &[(&str, &[Challenge])] = &[
            (r#"Bearer realm="https://a/token",service="s",scope="repository:x/y:pull""#, &[hub()]),
            (r#"bEaReR REALM = "https://a/token" , Service=s,  scope="repository:x/y:pull""#, &[hub()]),
            (r#"Bearer scope="repository:x/y:pull" service="s" realm="https://a/token""#, &[hub()]),
            (r#"Bearer realm=https://a/token"#, &[plain()]),
            (r#"Bearer realm="https://a/token",error="invalid_token""#, &[plain()]),
            (r#"Basic realm="x, Bearer realm=\"https://evil/\"""#, &[Challenge::Basic]),
            (r#"Basic, Bearer realm="https://a/token""#, &[Challenge::Basic, plain()]),
            (r#"Basic realm="x", Bearer realm="https://a/token""#, &[Challenge::Basic, plain()]),
            (r#"Bearer realm="https://a/token", Basic realm="x""#, &[plain(), Challenge::Basic]),
            ("Negotiate YWJj/+==, Basic", &[Challenge::Basic]),
            ("Negotiate abc, Basic", &[Challenge::Basic]),
            (r#"Bearer realm="a\"b\\c""#, &[bearer(r#"a"b\c"#, None, None)]),
            (",, , Basic ,,", &[Challenge::Basic]),
            ("Basic", &[Challenge::Basic]),
            ("", &[]),
            (" , ,", &[]),
            ("Bearer", &[]),
            (r#"Bearer service="s""#, &[]),
            (r#"Bearer realm="""#, &[]),
            (r#"Bearer realm="https://a/token"#, &[]),
            (r#"Bearer realm="https://a/token\"#, &[]),
            (r#"Bearer ="x""#, &[]),
            (r#"Bearer realm=,service="s""#, &[]),
            (r#"Digest realm="x", nonce="y""#, &[]),
            (r#""Basic""#, &[]),
            (&long, &[]),
            (&many, &[]),
        ];
        for (header, expected) in cases {
            assert_eq!(parse(header), *expected, "{header}");
        }
    }

    #[test]
    fn bearer_goes_before_basic_over_all_headers() {
        let cases: &[(&[&str], Option<Challenge>)] = &[
            (&["Basic realm=x", "Bearer realm=https://a"], Some(bearer("https://a", None, None))),
            (&["Negotiate", "Basic realm=x"], Some(Challenge::Basic)),
            (&["Negotiate"], None),
            (&[], None),
        ];
        for (lines, expected) in cases {
            let mut headers = HeaderMap::new();
            for line in *lines {
                headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(line));
            }
            assert_eq!(Challenge::choose(&headers), *expected, "{lines:?}");
        }
    }

    /// Every prefix, and every deletion, doubling and swap of one character of a few seeds: no panic, no endless loop,
    /// and never more offers than the limit.
    #[test]
    fn mangled_headers_are_survived() {
        let seeds = [
            r#"Bearer realm="https://a/token",service="s p",scope="repository:x/y:pull", Basic realm="\"q\"""#,
            "Negotiate YWJj/+==, Basic, Digest a=b , c = \"é\\",
            ",=\"\\ ,,Basic=Bearer realm==\"",
        ];
        let noise = ['"', '\\', ',', '=', ' ', '\t', 'é', '\0', 'B'];
        for seed in seeds {
            let chars: Vec<char> = seed.chars().collect();
            for at in 0..chars.len() {
                let mut variants = vec![chars[..at].to_vec(), chars[at..].to_vec()];
                for c in noise {
                    let mut inserted = chars.clone();
                    inserted.insert(at, c);
                    let mut replaced = chars.clone();
                    replaced[at] = c;
                    variants.extend([inserted, replaced]);
                }
                for variant in variants {
                    let text: String = variant.into_iter().collect();
                    assert!(parse(&text).len() <= MAX_CHALLENGES, "{text}");
                }
            }
        }
    }
}
