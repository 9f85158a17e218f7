//! One 512-byte header block (POSIX.1-1988 ustar; GNU tar manual, "Basic Tar Format").

use super::RECORD;

/// What the magic says about the bytes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

pub(super) struct Header([u8; RECORD]);

/// Data ranges of a sparse file: offset and length.
pub(super) type Ranges = Vec<(u64, u64)>;

impl Header {
    /// `None` when the checksum does not match.
    pub(super) fn parse(block: [u8; RECORD]) -> Option<Self> {
        let expected = octal(&block[148..156])?;
        let counted = |at: usize| if (148..156).contains(&at) { b' ' } else { block[at] };
        let unsigned: i64 = (0..RECORD).map(|at| i64::from(counted(at))).sum();
        let signed: i64 = (0..RECORD).map(|at| i64::from(counted(at).cast_signed())).sum();
        (expected == unsigned || expected == signed).then_some(Self(block))
    }

    pub(super) fn dialect(&self) -> Dialect {
        match (&self.0[257..265], &self.0[508..512]) {
            (b"ustar  \0", _) => Dialect::Gnu,
            ([b'u', b's', b't', b'a', b'r', 0, ..], b"tar\0") => Dialect::Star,
            ([b'u', b's', b't', b'a', b'r', 0, ..], _) => Dialect::Ustar,
            _ => Dialect::V7,
        }
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn path(&self) -> Vec<u8> {
        let prefix = match self.dialect() {
            Dialect::V7 => b"".as_slice(),
            Dialect::Ustar => text(&self.0[345..500]),
            Dialect::Star => text(&self.0[345..476]),
            Dialect::Gnu => self.misplaced_prefix(),
        };
        let name = text(&self.0[..100]);
        if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') }
    }

    /// Before Go 1.8, `archive/tar` put a ustar prefix where GNU headers have times; layers of those years exist.
    fn misplaced_prefix(&self) -> &[u8] {
        let is_time = |field: &[u8]| field[0] == 0 || number(field).is_some();
        let prefix = text(&self.0[345..500]);
        let misplaced = !(is_time(&self.0[345..357]) && is_time(&self.0[357..369])) && prefix.is_ascii();
        if misplaced { prefix } else { b"" }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Option<i64> {
        number(&self.0[100..108])
    }

    pub(super) fn uid(&self) -> Option<i64> {
        number(&self.0[108..116])
    }

    pub(super) fn gid(&self) -> Option<i64> {
        number(&self.0[116..124])
    }

    pub(super) fn size(&self) -> Option<i64> {
        number(&self.0[124..136])
    }

    pub(super) fn mtime(&self) -> Option<i64> {
        number(&self.0[136..148])
    }

    /// The device number as Linux encodes it in 32 bits; 0 where the dialect has no such fields.
    pub(super) fn device(&self) -> Option<u32> {
        if self.dialect() == Dialect::V7 {
            return Some(0);
        }
        let major = u32::try_from(number(&self.0[329..337])?).ok()?;
        let minor = u32::try_from(number(&self.0[337..345])?).ok()?;
        let encodable = major < 1 << 12 && minor < 1 << 20;
        encodable.then_some((minor & 0xff) | major << 8 | (minor & !0xff) << 12)
    }

    pub(super) fn sparse_size(&self) -> Option<i64> {
        number(&self.0[483..495])
    }

    /// The four ranges of an old GNU sparse header, and whether extension blocks follow.
    pub(super) fn sparse_ranges(&self) -> Option<(Ranges, bool)> {
        Some((ranges(&self.0[386..482])?, self.0[482] != 0))
    }
}

/// The 21 ranges of an old GNU sparse extension block, and whether another follows.
pub(super) fn sparse_extension(block: &[u8; RECORD]) -> Option<(Ranges, bool)> {
    Some((ranges(&block[..504])?, block[504] != 0))
}

fn ranges(fields: &[u8]) -> Option<Ranges> {
    let used = fields.chunks_exact(24).take_while(|field| field[0] != 0);
    let value = |field| number(field).and_then(|value| u64::try_from(value).ok());
    used.map(|field| Some((value(&field[..12])?, value(&field[12..])?))).collect()
}

/// A field up to its first zero byte.
pub(super) fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|byte| *byte == 0).unwrap_or(field.len())]
}

/// A number in octal digits, or in base 256 when the highest bit is set (GNU, star).
pub(super) fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 == 0 {
        return octal(field);
    }
    let negative = field[0] & 0x40 != 0;
    let first = if negative { field[0].cast_signed() } else { (field[0] & 0x7f).cast_signed() };
    let value = field[1..].iter().try_fold(i128::from(first), |value, byte| {
        let next = value << 8 | i128::from(*byte);
        i64::try_from(next).is_ok().then_some(next)
    })?;
    i64::try_from(value).ok()
}

fn octal(field: &[u8]) -> Option<i64> {
    let trimmed = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !trimmed(byte)).unwrap_or(field.len());
    let digits = text(&field[start..]);
    let end = digits.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
    digits[..end].iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        let cases: [(&[u8], Option<i64>); 12] = [
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644\0junk", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"0000648\0", None),
            (b"-000001\0", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
        ];
        for (field, expected) in cases {
            assert_eq!(number(field), expected, "{}", field.escape_ascii());
        }
    }
}
