use super::*;
use crate::filesystem::Timestamp;

/// A request as the kernel writes it.
fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(((IN_HEADER_BYTES + body.len()) as u32).to_ne_bytes());
    out.extend(opcode.to_ne_bytes());
    out.extend(7u64.to_ne_bytes());
    out.extend(9u64.to_ne_bytes());
    out.extend([0; 16]);
    out.extend(body);
    out
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// `fuse_read_in` with offset 2^32 + 5 and size 8192, on a little- or big-endian machine.
fn read_in() -> Vec<u8> {
    let mut body = vec![0; 40];
    body[8..16].copy_from_slice(&((1u64 << 32) + 5).to_ne_bytes());
    body[16..20].copy_from_slice(&8192u32.to_ne_bytes());
    body
}

fn bodies() -> Vec<(u32, Vec<u8>)> {
    let forgets: Vec<u8> = [2u64, 1, 3, 5].iter().flat_map(|word| word.to_ne_bytes()).collect();
    vec![
        (1, b"name\0".to_vec()),
        (2, 3u64.to_ne_bytes().to_vec()),
        (3, vec![0; 16]),
        (5, vec![]),
        (14, vec![0; 8]),
        (15, read_in()),
        (17, vec![]),
        (22, [words(&[64, 0]), b"user.x\0".to_vec()].concat()),
        (23, words(&[0, 0])),
        (26, words(&[7, 45, 131_072, 1 << 30 | 1, 1 << 7])),
        (28, read_in()),
        (44, read_in()),
        (42, [words(&[2, 0]), forgets].concat()),
        (16, vec![0; 40]),
        (34, vec![0; 8]),
        (25, vec![0; 24]),
        (9999, vec![1, 2, 3]),
    ]
}

#[test]
fn requests() {
    let node = |id| NodeId(id);
    let offset = (1 << 32) + 5;
    let forgets = [(node(2), 1), (node(3), 5)];
    for (opcode, body) in bodies() {
        let request = request(opcode, &body);
        let (header, body) = Header::parse(&request).unwrap();
        assert_eq!((header.unique, header.node), (7, node(9)));
        let operation = header.operation(body).unwrap();
        let expected = match opcode {
            1 => Operation::Lookup { name: b"name" },
            2 => Operation::Forget { lookups: 3 },
            3 => Operation::GetAttributes,
            5 => Operation::ReadLink,
            14 => Operation::Open,
            15 => Operation::Read { offset, size: 8192 },
            17 => Operation::StatFs,
            22 => Operation::GetXattr { name: b"user.x", size: 64 },
            23 => Operation::ListXattr { size: 0 },
            26 => {
                let flags = 1 << 39 | 1 << 30 | 1;
                Operation::Init(InitRequest { major: 7, minor: 45, max_readahead: 131_072, flags })
            }
            28 => Operation::ReadDirectory(ListRequest { offset, size: 8192, listing: Listing::Plain }),
            44 => Operation::ReadDirectory(ListRequest { offset, size: 8192, listing: Listing::Plus }),
            16 => Operation::Modify,
            42 => {
                let Operation::BatchForget(found) = operation else { panic!("{operation:?}") };
                assert_eq!(found.collect::<Vec<_>>(), forgets);
                continue;
            }
            _ => Operation::Unsupported,
        };
        assert_eq!(operation, expected, "opcode {opcode}");
    }
}

/// Every prefix of every request, with a header that admits to the length: an error or a request, never a panic.
#[test]
fn truncated_requests() {
    for (opcode, body) in bodies() {
        for cut in 0..=body.len() {
            let request = request(opcode, &body[..cut]);
            let (header, body) = Header::parse(&request).unwrap();
            let _ = header.operation(body);
            for end in 0..request.len() {
                assert_eq!(Header::parse(&request[..end]), Err(Malformed));
            }
        }
    }
}

#[test]
fn lengths_that_lie() {
    let table: &[(u32, Vec<u8>)] = &[
        (1, b"no end".to_vec()),
        (1, b"\0".to_vec()),
        (2, vec![0; 7]),
        (15, vec![0; 19]),
        (26, words(&[7, 45, 0])),
        (26, words(&[7, 45, 0, 1 << 30])),
        (42, words(&[1, 0])),
        (42, words(&[u32::MAX, 0, 0, 0])),
    ];
    for (opcode, body) in table {
        let request = request(*opcode, body);
        let (header, body) = Header::parse(&request).unwrap();
        assert_eq!(header.operation(body), Err(Malformed), "opcode {opcode}");
    }
}

#[test]
fn init_agrees_to_what_both_know() {
    let offered = 1 << 39 | 1 << 30 | 1 << 41 | 1 << 12 | 1;
    let (reply, agreed) =
        init_reply(&InitRequest { major: 7, minor: 45, max_readahead: 4096, flags: offered });
    assert!(agreed.resend());
    assert_eq!(agreed.0, 1 << 39 | 1 << 30 | 1);
    assert_eq!(reply[12..16], (1u32 << 30 | 1).to_ne_bytes());
    assert_eq!(reply[28..30], 256u16.to_ne_bytes());
    assert_eq!(reply[32..36], (1u32 << 7).to_ne_bytes());
}

#[test]
fn attributes_fill_their_structure() {
    let attributes = Attributes {
        kind: FileKind::CharacterDevice,
        permissions: 0o4755,
        links: 2,
        uid: 3,
        gid: 4,
        rdev: 0x103,
        size: 1025,
        modified: Timestamp { seconds: -1, nanoseconds: 5 },
    };
    let reply = entry_reply(&Entry { node: NodeId(6), attributes });
    let attr = &reply[40..];
    assert_eq!(attr[..8], 6u64.to_ne_bytes());
    assert_eq!(attr[16..24], 3u64.to_ne_bytes());
    assert_eq!(attr[32..40], (-1i64).to_ne_bytes());
    assert_eq!(attr[60..80], words(&[0o024_755, 2, 3, 4, 0x103])[..]);
    assert_eq!(attributes_reply(NodeId(6), &attributes)[16..], attr[..]);
}

#[test]
fn directory_records_are_padded_and_stop_at_the_end() {
    let record =
        |plus| DirectoryRecord { name: b"abc", node: NodeId(5), kind: FileKind::Regular, next: 2, plus };
    let mut out = [0xff; 400];
    assert_eq!(record(Plus::No).encode(&mut out), Some(32));
    assert_eq!(out[16..28], [words(&[3, 8]), b"abc\0".to_vec()].concat()[..]);
    assert_eq!(out[28..32], [0; 4]);
    assert_eq!(record(Plus::NameOnly).encode(&mut out), Some(160));
    assert_eq!(out[..8], [0; 8]);
    assert_eq!(record(Plus::No).encode(&mut out[..31]), None);
    assert_eq!(record(Plus::NameOnly).encode(&mut out[..159]), None);
}
