//! Extended headers (POSIX.1-2001 pax, "pax Header Block"): records of the form `length key=value\n`.

use super::sparse;

/// What the records of one header say. A record with an empty value leaves the ustar field as it is.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) path: Option<Vec<u8>>,
    pub(super) linkpath: Option<Vec<u8>>,
    pub(super) size: Option<i64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: sparse::Records,
}

/// An attribute's name; the value is as it is. GNU tar, star, Go.
const SCHILY_XATTR: &[u8] = b"SCHILY.xattr.";
/// Name percent-encoded, value in base64. libarchive, which may write both forms.
const LIBARCHIVE_XATTR: &[u8] = b"LIBARCHIVE.xattr.";

impl Extensions {
    pub(super) fn parse(mut records: &[u8]) -> Result<Self, &'static str> {
        let mut parsed = Self::default();
        let mut from_libarchive = Vec::new();
        while !records.is_empty() {
            let (key, value, rest) = record(records).ok_or("a pax record is malformed")?;
            records = rest;
            if let Some(name) = key.strip_prefix(LIBARCHIVE_XATTR) {
                let decoded = (percent_decode(name), base64_decode(value));
                let (Some(name), Some(value)) = decoded else {
                    return Err("a LIBARCHIVE.xattr record is malformed");
                };
                from_libarchive.push((name, value));
            } else {
                parsed.set(key, value)?;
            }
        }
        let known: std::collections::BTreeSet<Vec<u8>> =
            parsed.xattrs.iter().map(|(name, _)| name.clone()).collect();
        parsed.xattrs.extend(from_libarchive.into_iter().filter(|(name, _)| !known.contains(name)));
        keep_last(&mut parsed.xattrs);
        Ok(parsed)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let text = || match value {
            [] => Ok(None),
            value if value.contains(&0) => Err("a pax path holds a zero byte"),
            value => Ok(Some(value.to_vec())),
        };
        let integer = || match value {
            [] => Ok(None),
            value => parse_integer(value).map(Some).ok_or("a pax number is malformed"),
        };
        match key {
            b"path" => self.path = text()?,
            b"linkpath" => self.linkpath = text()?,
            b"size" => self.size = integer()?,
            b"uid" => self.uid = integer()?,
            b"gid" => self.gid = integer()?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(parse_time(value).ok_or("a pax time is malformed")?),
            _ => match (key.strip_prefix(SCHILY_XATTR), key.strip_prefix(b"GNU.sparse.")) {
                (Some(name), _) if !name.is_empty() => self.xattrs.push((name.to_vec(), value.to_vec())),
                (_, Some(name)) => self.sparse.set(name, value)?,
                _ => {}
            },
        }
        Ok(())
    }
}

/// Key, value and what follows.
fn record(input: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = input.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(parse_integer(&input[..space])?).ok()?;
    let (record, rest) = input.split_at_checked(length)?;
    let text = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = text.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&text[..equals], &text[equals + 1..]);
    (!key.is_empty() && !key.contains(&0)).then_some((key, value, rest))
}

/// Sorts by name; of several values for one name the last stays.
fn keep_last(xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>) {
    xattrs.reverse();
    xattrs.sort_by(|a, b| a.0.cmp(&b.0));
    xattrs.dedup_by(|later, kept| later.0 == kept.0);
}

pub(super) fn parse_integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = text.strip_prefix(b"-").map_or((false, text), |digits| (true, digits));
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0i64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| i64::from(digit - b'0'))?;
        let value = value.checked_mul(10)?;
        if negative { value.checked_sub(digit) } else { value.checked_add(digit) }
    })
}

/// Seconds with an optional fraction; digits past nanoseconds are cut off.
fn parse_time(text: &[u8]) -> Option<(i64, u32)> {
    let point = text.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = point.map_or((text, b"".as_slice()), |at| (&text[..at], &text[at + 1..]));
    let seconds = parse_integer(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    match (whole.starts_with(b"-"), nanoseconds) {
        (false, _) | (true, 0) => Some((seconds, nanoseconds)),
        (true, _) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
    }
}

fn percent_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        out.push(match first {
            b'%' => {
                let (digits, after) = rest.split_first_chunk::<2>()?;
                rest = after;
                let digit = |byte: u8| (byte as char).to_digit(16);
                (digit(digits[0])? << 4 | digit(digits[1])?) as u8
            }
            other => *other,
        });
    }
    (!out.is_empty() && !out.contains(&0)).then_some(out)
}

/// RFC 4648, section 4; libarchive leaves the padding out.
fn base64_decode(text: &[u8]) -> Option<Vec<u8>> {
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    let digits = &text[..text.len() - padding];
    if padding > 2 || digits.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let bits = group.iter().try_fold(0u32, |bits, digit| Some(bits << 6 | base64_digit(*digit)?))?;
        let bytes = (bits << (6 * (4 - group.len()))).to_be_bytes();
        out.extend_from_slice(&bytes[1..group.len()]);
    }
    Some(out)
}

fn base64_digit(digit: u8) -> Option<u32> {
    Some(u32::from(match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_fractions_and_signs() {
        let cases: [(&str, Option<(i64, u32)>); 10] = [
            ("0", Some((0, 0))),
            ("1350244992.023960108", Some((1350244992, 23960108))),
            ("1.5", Some((1, 500_000_000))),
            ("1.", Some((1, 0))),
            ("-1", Some((-1, 0))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.5", Some((-1, 500_000_000))),
            ("1.12345678999", Some((1, 123_456_789))),
            ("1.5x", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_time(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn records_parse_or_are_refused() {
        let good = Extensions::parse(b"13 path=caf\xff\n6 a=b\n28 LIBARCHIVE.xattr.a%20=YQ\n").unwrap();
        assert_eq!(good.path.as_deref(), Some(b"caf\xff".as_slice()));
        assert_eq!(good.xattrs, [(b"a ".to_vec(), b"a".to_vec())]);
        for bad in
            ["6 a=b", "x a=b\n", "7 a=b\n", "5 a=b\n", "6 =ab\n", "99999999999999999999 a=b\n", "-6 a=b\n"]
        {
            assert!(Extensions::parse(bad.as_bytes()).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn the_last_value_of_an_attribute_counts_and_schily_before_libarchive() {
        let records = b"22 SCHILY.xattr.u.a=1\n22 SCHILY.xattr.u.a=2\n27 LIBARCHIVE.xattr.u.a=Mw\n";
        let parsed = Extensions::parse(records);
        assert_eq!(parsed.unwrap().xattrs, [(b"u.a".to_vec(), b"2".to_vec())]);
    }
}
