//! Sparse files as GNU tar stores them (GNU tar manual, "Storing Sparse Files").

use super::MAX_EXTENSION_BYTES;
use super::header::Ranges;
use super::pax::parse_integer;

/// A part of a file's content, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// So many bytes are in the stream.
    Data(u64),
    /// So many zeros are not.
    Hole(u64),
}

/// The file's length with holes, and where the stored bytes belong.
pub(super) struct Map {
    pub(super) size: u64,
    pub(super) data: Ranges,
}

/// Where a map described by pax records is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// 0.0 and 0.1
    InHeader,
    /// 1.0
    BeforeContent,
}

/// The `GNU.sparse.*` records of one pax header.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) name: Option<Vec<u8>>,
    /// `size` in 0.0 and 0.1, `realsize` in 1.0.
    pub(super) size: Option<u64>,
    version: [Option<Vec<u8>>; 2],
    /// Offsets and lengths by turns; the 0.0 records repeat, 0.1 lists them.
    numbers: Vec<u64>,
    has_map: bool,
}

impl Records {
    pub(super) fn set(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let number = || unsigned(value).ok_or("a number of a sparse map is malformed");
        match name {
            b"name" => self.name = Some(value.to_vec()).filter(|name| !name.is_empty()),
            b"size" | b"realsize" => self.size = Some(number()?),
            b"major" => self.version[0] = Some(value.to_vec()),
            b"minor" => self.version[1] = Some(value.to_vec()),
            b"offset" if self.numbers.len().is_multiple_of(2) => self.push(number()?),
            b"numbytes" if !self.numbers.len().is_multiple_of(2) => self.push(number()?),
            b"offset" | b"numbytes" => return Err("offsets and lengths of a sparse map do not alternate"),
            b"map" => {
                let numbers = value.split(|byte| *byte == b',').map(unsigned).collect::<Option<_>>();
                self.numbers = match value {
                    [] => Vec::new(),
                    _ => numbers.ok_or("a number of a sparse map is malformed")?,
                };
                self.has_map = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, number: u64) {
        self.numbers.push(number);
        self.has_map = true;
    }

    pub(super) fn form(&self) -> Result<Option<Form>, &'static str> {
        match [self.version[0].as_deref(), self.version[1].as_deref()] {
            [Some(b"1"), Some(b"0")] => Ok(Some(Form::BeforeContent)),
            [None, None] | [Some(b"0"), Some(b"0" | b"1")] => Ok(self.has_map.then_some(Form::InHeader)),
            _ => Err("a sparse file of a version other than 0.0, 0.1 and 1.0"),
        }
    }

    pub(super) fn ranges(&self) -> Result<Ranges, &'static str> {
        pairs(&self.numbers)
    }
}

/// The map of form 1.0: decimal numbers, one a line: how many ranges, then offset and length of each.
#[derive(Default)]
pub(super) struct TextMap {
    numbers: Vec<u64>,
    line: Vec<u8>,
    malformed: bool,
    bytes: u64,
}

impl TextMap {
    pub(super) fn push(&mut self, block: &[u8]) {
        self.bytes += block.len() as u64;
        for byte in block {
            if self.expected().is_some_and(|expected| self.numbers.len() as u64 >= expected) {
                return;
            }
            match byte {
                b'\n' => {
                    let number = unsigned(&self.line);
                    self.malformed |= number.is_none();
                    self.numbers.extend(number);
                    self.line.clear();
                }
                byte => self.line.push(*byte),
            }
        }
    }

    /// How many numbers there will be, the first included.
    fn expected(&self) -> Option<u64> {
        self.numbers.first().map(|ranges| ranges.saturating_mul(2).saturating_add(1))
    }

    pub(super) fn is_complete(&self) -> Result<bool, &'static str> {
        if self.malformed {
            return Err("a number of a sparse map is malformed");
        }
        if self.bytes > MAX_EXTENSION_BYTES {
            return Err("a sparse map of more than 1 MiB");
        }
        Ok(self.expected().is_some_and(|expected| self.numbers.len() as u64 >= expected))
    }

    pub(super) fn ranges(&self) -> Result<Ranges, &'static str> {
        pairs(self.numbers.get(1..).unwrap_or_default())
    }
}

fn pairs(numbers: &[u64]) -> Result<Ranges, &'static str> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("the last range of a sparse map has no length");
    }
    Ok(pairs.iter().map(|pair| (pair[0], pair[1])).collect())
}

fn unsigned(text: &[u8]) -> Option<u64> {
    parse_integer(text).and_then(|number| u64::try_from(number).ok())
}

/// A file without holes.
pub(super) fn whole(bytes: u64) -> Vec<Extent> {
    if bytes == 0 { Vec::new() } else { vec![Extent::Data(bytes)] }
}

/// Turns a map into extents: ranges in order, without overlap, within the file, as many bytes as are stored.
pub(super) fn extents(size: u64, data: &Ranges, stored: u64) -> Result<Vec<Extent>, &'static str> {
    let mut extents = Vec::with_capacity(data.len() * 2 + 1);
    let (mut at, mut bytes) = (0u64, 0u64);
    for (offset, length) in data {
        let end = offset.checked_add(*length).filter(|end| *end <= size && *offset >= at);
        let end = end.ok_or("the ranges of a sparse map are out of order or outside the file")?;
        extents.extend((*offset > at).then_some(Extent::Hole(offset - at)));
        extents.extend((*length > 0).then_some(Extent::Data(*length)));
        (at, bytes) = (end, bytes + length);
    }
    if bytes != stored {
        return Err("a sparse map and the stored bytes disagree");
    }
    extents.extend((size > at).then_some(Extent::Hole(size - at)));
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_become_extents_or_are_refused() {
        let (data, hole) = (Extent::Data, Extent::Hole);
        let check = |size, ranges: &[(u64, u64)], stored, expected: Option<&[Extent]>| {
            let found = extents(size, &ranges.to_vec(), stored);
            assert_eq!(found.as_deref().ok(), expected, "{size} {ranges:?} {stored}");
        };
        check(0, &[], 0, Some(&[]));
        check(10, &[], 0, Some(&[hole(10)]));
        check(10, &[(10, 0)], 0, Some(&[hole(10)]));
        check(10, &[(0, 3), (5, 5)], 8, Some(&[data(3), hole(2), data(5)]));
        check(10, &[(2, 3), (5, 1)], 4, Some(&[hole(2), data(3), data(1), hole(4)]));
        check(10, &[(5, 1), (2, 3)], 4, None);
        check(10, &[(0, 5), (4, 1)], 6, None);
        check(10, &[(5, 6)], 6, None);
        check(10, &[(0, 5)], 6, None);
        check(u64::MAX, &[(u64::MAX, 1)], 1, None);
    }
}
