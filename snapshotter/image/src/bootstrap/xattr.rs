//! Inline extended attributes: a 12-byte header, then entries, each a multiple of 4 bytes.

const HEADER_BYTES: usize = 12;
const ENTRY_BYTES: usize = 4;
/// `i_xattr_icount` has 16 bits and counts 4-byte units after the header, plus one.
const MAX_AREA_BYTES: usize = HEADER_BYTES + ENTRY_BYTES * (u16::MAX as usize - 1);

/// Name prefixes that EROFS can hold, and their `e_name_index`. An ACL's prefix is its whole name.
const PREFIXES: [(u8, &[u8]); 6] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (5, b"lustre."),
    (6, b"security."),
];

/// Whether EROFS, and with it Linux on this file system, knows the attribute's name space. Unpackers skip others
/// as well: no Linux file system for images takes them.
pub(crate) fn is_representable(name: &[u8]) -> bool {
    split(name).is_some()
}

fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        let whole = matches!(index, 2 | 3);
        (rest.is_empty() == whole && rest.len() <= usize::from(u8::MAX)).then_some((*index, rest))
    })
}

/// Bytes that the attributes take after the inode, or why they cannot be stored.
pub(crate) fn area_bytes(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<usize, &'static str> {
    if xattrs.is_empty() {
        return Ok(0);
    }
    let mut bytes = HEADER_BYTES;
    for (name, value) in xattrs {
        let (_, rest) =
            split(name).ok_or("a name outside user, trusted, security and the POSIX ACLs, or too long")?;
        if value.len() > usize::from(u16::MAX) {
            return Err("a value longer than 65,535 bytes");
        }
        bytes += (ENTRY_BYTES + rest.len() + value.len()).next_multiple_of(ENTRY_BYTES);
    }
    if bytes > MAX_AREA_BYTES {
        return Err("more than 262,148 bytes together");
    }
    Ok(bytes)
}

/// The inode's `i_xattr_icount` for an area of `bytes`.
pub(super) fn icount(bytes: usize) -> u16 {
    match bytes {
        0 => 0,
        _ => u16::try_from((bytes - HEADER_BYTES) / ENTRY_BYTES + 1)
            .expect("area_bytes keeps areas within 16 bits"),
    }
}

/// The area's size that an `i_xattr_icount` stands for.
pub(super) fn bytes_of(icount: u16) -> usize {
    match icount {
        0 => 0,
        n => HEADER_BYTES + ENTRY_BYTES * (usize::from(n) - 1),
    }
}

/// Writes the area; `out` is zeroed and as long as `area_bytes` said.
pub(super) fn encode(xattrs: &[(Vec<u8>, Vec<u8>)], out: &mut [u8]) {
    let mut at = HEADER_BYTES;
    for (name, value) in xattrs {
        let (index, rest) = split(name).expect("area_bytes has refused other names");
        let head = [rest.len() as u8, index];
        out[at..at + 2].copy_from_slice(&head);
        out[at + 2..at + 4].copy_from_slice(&(value.len() as u16).to_le_bytes());
        let text = at + ENTRY_BYTES;
        out[text..text + rest.len()].copy_from_slice(rest);
        out[text + rest.len()..text + rest.len() + value.len()].copy_from_slice(value);
        at = (text + rest.len() + value.len()).next_multiple_of(ENTRY_BYTES);
    }
}

/// Parses an area; `None` when it is malformed, has shared attributes, or repeats a name.
pub(super) fn decode(area: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let Some((header, mut rest)) = area.split_at_checked(HEADER_BYTES) else {
        return area.is_empty().then_some(xattrs);
    };
    if header[4] != 0 {
        return None;
    }
    while !rest.is_empty() {
        let (head, after) = rest.split_at_checked(ENTRY_BYTES)?;
        let (name_bytes, value_bytes) =
            (usize::from(head[0]), usize::from(u16::from_le_bytes([head[2], head[3]])));
        let (_, prefix) = PREFIXES.iter().find(|(index, _)| *index == head[1])?;
        let name = [*prefix, after.get(..name_bytes)?].concat();
        let value = after.get(name_bytes..name_bytes + value_bytes)?.to_vec();
        split(&name)?;
        xattrs.push((name, value));
        rest = after.get((name_bytes + value_bytes).next_multiple_of(ENTRY_BYTES)..)?;
    }
    let mut names: Vec<&[u8]> = xattrs.iter().map(|(name, _)| name.as_slice()).collect();
    names.sort_unstable();
    names.is_sorted_by(|a, b| a < b).then_some(xattrs)
}
