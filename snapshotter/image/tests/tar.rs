//! Archives in every dialect, from our own hand and from GNU tar's.

mod fixture;

use std::process::Command;

use d7y_image::{EntryKind, Extent, TarError, TarReader};
use fixture::{Item, build, header, listing, push, push_raw, record, seal, tar};
use proptest::prelude::*;

/// Paths, kinds and contents in words; stops at the first error.
fn read(archive: &[u8]) -> Result<Vec<String>, TarError> {
    let mut reader = TarReader::new(archive);
    let mut lines = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        while let Some(extent) = reader.next_extent() {
            match extent {
                Extent::Hole(bytes) => content.extend(format!("<{bytes}>").bytes()),
                Extent::Data(bytes) => {
                    let mut data = vec![0; bytes as usize];
                    reader.read_data(&mut data)?;
                    content.extend(data);
                }
            }
        }
        let (path, content) = (entry.path.escape_ascii().to_string(), content.escape_ascii().to_string());
        lines.push(match entry.kind {
            EntryKind::Regular { size } => format!("{path} {size} {content}"),
            EntryKind::Directory => format!("{path} dir"),
            EntryKind::Symlink(target) => format!("{path} -> {}", target.escape_ascii()),
            EntryKind::HardLink(target) => format!("{path} = {}", target.escape_ascii()),
            EntryKind::CharDevice(number) => format!("{path} c{number:x}"),
            EntryKind::BlockDevice(number) => format!("{path} b{number:x}"),
            EntryKind::Fifo => format!("{path} fifo"),
        });
    }
    Ok(lines)
}

fn long(type_flag: u8, text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    push_raw(&mut out, &header(&Item::new(type_flag, "././@LongLink"), text.len(), 0), text);
    out
}

/// A header changed by hand, its checksum renewed, and its content.
fn patched(item: &Item, change: impl Fn(&mut [u8; 512])) -> Vec<u8> {
    let mut block = header(item, item.data.len(), 1);
    change(&mut block);
    seal(&mut block);
    let mut out = Vec::new();
    push_raw(&mut out, &block, &item.data);
    out
}

fn put(block: &mut [u8; 512], at: usize, value: &[u8]) {
    block[at..at + value.len()].copy_from_slice(value);
}

fn plain(items: &[Item]) -> Vec<u8> {
    let mut out = Vec::new();
    items.iter().for_each(|item| push(&mut out, item));
    out
}

fn one(item: &Item) -> Vec<u8> {
    plain(std::slice::from_ref(item))
}

fn check(cases: Vec<(&str, Vec<u8>, &[&str])>) {
    for (what, archive, expected) in cases {
        assert_eq!(read(&archive).unwrap_or_else(|error| panic!("{what}: {error}")), expected, "{what}");
    }
}

#[test]
fn ends_are_found() {
    let file = Item::file("f", "abc");
    check(vec![
        ("nothing at all", vec![], &[]),
        ("two blocks of zeros", vec![0; 1024], &[]),
        ("one block of zeros", vec![0; 512], &[]),
        ("no end", one(&file), &["f 3 abc"]),
        ("one block of zeros after a file", [one(&file), vec![0; 512]].concat(), &["f 3 abc"]),
        ("no padding", one(&file)[..515].to_vec(), &["f 3 abc"]),
        ("half of the padding", one(&file)[..700].to_vec(), &["f 3 abc"]),
        ("bytes after the end", [one(&file), vec![0; 1024], vec![7; 700]].concat(), &["f 3 abc"]),
    ]);
}

#[test]
fn headers_of_every_dialect_are_read() {
    let file = Item::file("f", "abc");
    let v7 = |b: &mut [u8; 512]| {
        put(b, 257, &[0; 255]);
        b[156] = 0;
    };
    let star = |b: &mut [u8; 512]| {
        put(b, 345, b"a");
        put(b, 476, b"00000000001");
        put(b, 508, b"tar\0");
    };
    let gnu = |at_345: &'static [u8]| {
        move |b: &mut [u8; 512]| {
            put(b, 257, b"ustar  \0");
            put(b, 345, at_345);
        }
    };
    let size = [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
    let devices = [Item::new(b'3', "c").device(1, 5), Item::new(b'4', "b").device(8, 300)];
    check(vec![
        ("contiguous", one(&Item::new(b'7', "f")), &["f 0 "]),
        ("V7 directory", patched(&Item::file("d/", ""), v7), &["d/ dir"]),
        ("V7 file", patched(&file, v7), &["f 3 abc"]),
        ("ustar prefix", patched(&file, |b| put(b, 345, b"a/b")), &["a/b/f 3 abc"]),
        ("star prefix ends before the times", patched(&file, star), &["a/f 3 abc"]),
        ("GNU with times", patched(&file, gnu(b"00000000001\x0000000000001\0")), &["f 3 abc"]),
        (
            "GNU with the prefix of Go before 1.8",
            patched(&file, gnu(b"some/prefix")),
            &["some/prefix/f 3 abc"],
        ),
        ("size in base 256", patched(&file, |b| put(b, 124, &size)), &["f 3 abc"]),
        ("not UTF-8", one(&Item::file(b"\xff\xfe", "")), &["\\xff\\xfe 0 "]),
        (
            "a link with a size has no content",
            patched(&Item::hardlink("h", "f"), |b| put(b, 124, b"00000000777\0")),
            &["h = f"],
        ),
        ("devices", plain(&devices), &["c c105", "b b10082c"]),
        ("fifo", one(&Item::new(b'6', "p")), &["p fifo"]),
    ]);
}

#[test]
fn extension_headers_apply_to_one_entry() {
    const LONG: &str = "a/path/of/more/than/one/hundred/bytes/that/no/header/of/the/first/unix/had/room/for/so/that/others/had/to/help";
    let file = Item::file("f", "abc");
    let named = |item: &Item| item.clone().pax("path", "p");
    check(vec![
        ("GNU long name", [long(b'L', LONG.as_bytes()), one(&file)].concat(), &[&format!("{LONG} 3 abc")]),
        ("pax path", one(&Item::file(LONG, "abc")), &[&format!("{LONG} 3 abc")]),
        ("GNU long link", [long(b'K', b"to\0"), one(&Item::symlink("x", "y"))].concat(), &["x -> to"]),
        ("pax link path", one(&Item::hardlink("x", LONG)), &[&format!("x = {LONG}")]),
        ("GNU counts before pax", [long(b'L', b"gnu\0"), one(&named(&file))].concat(), &["gnu 3 abc"]),
        ("the pax size counts", patched_size(), &["f 3 abc"]),
        ("an empty value changes nothing", one(&file.clone().pax("path", "")), &["f 3 abc"]),
        (
            "global headers do not apply",
            [long(b'g', &record(b"path", b"p")), one(&file)].concat(),
            &["f 3 abc"],
        ),
        ("the next entry is free", plain(&[named(&file), file.clone()]), &["p 3 abc", "f 3 abc"]),
        (
            "the last header counts",
            [long(b'x', &record(b"path", b"q")), one(&named(&file))].concat(),
            &["p 3 abc"],
        ),
    ]);
}

/// A size that only the pax header knows.
fn patched_size() -> Vec<u8> {
    let file = Item::file("f", "abc");
    [long(b'x', &record(b"size", b"3")), patched(&file, |b| put(b, 124, b"00000000000\0"))].concat()
}

#[test]
fn sparse_files_of_every_form_are_read() {
    let zero_zero = Item::file("f", "abcde")
        .pax("GNU.sparse.size", "20")
        .pax("GNU.sparse.numblocks", "2")
        .pax("GNU.sparse.offset", "3")
        .pax("GNU.sparse.numbytes", "2")
        .pax("GNU.sparse.offset", "10")
        .pax("GNU.sparse.numbytes", "3");
    let zero_one = Item::file("GNUSparseFile.0/f", "abcde")
        .pax("GNU.sparse.name", "f")
        .pax("GNU.sparse.size", "20")
        .pax("GNU.sparse.map", "3,2,10,3");
    let mut content = b"2\n3\n2\n10\n3\n".to_vec();
    content.resize(512, 0);
    content.extend(b"abcde");
    let one_zero = Item::file("GNUSparseFile.0/f", &content)
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.name", "f")
        .pax("GNU.sparse.realsize", "20");
    let old = |extended: bool| {
        let item = Item { type_flag: b'S', ..Item::file("f", "abcde") };
        let mut archive = patched(&item, |b| {
            put(b, 257, b"ustar  \0");
            put(b, 345, &[0; 155]);
            put(b, 386, b"00000000003\x0000000000002\0");
            put(
                b,
                if extended { 482 } else { 410 },
                if extended { b"\x01" } else { b"00000000012\x0000000000003\0" },
            );
            put(b, 483, b"00000000024\0");
        });
        if extended {
            let mut block = [0; 512];
            put(&mut block, 0, b"00000000012\x0000000000003\0");
            archive.splice(512..512, block);
        }
        archive
    };
    for (what, archive) in [
        ("0.0", plain(&[zero_zero])),
        ("0.1", plain(&[zero_one])),
        ("1.0", plain(&[one_zero])),
        ("old", old(false)),
        ("old, extended", old(true)),
    ] {
        assert_eq!(read(&archive).unwrap(), ["f 20 <3>ab<5>cde<7>"], "{what}");
        assert_eq!(
            listing(&build(&archive).unwrap()),
            [
                "/?",
                "/f \"\\\\x00\\\\x00\\\\x00ab\\\\x00\\\\x00\\\\x00\\\\x00\\\\x00cde\\\\x00\\\\x00\\\\x00\\\\x00\\\\x00\\\\x00\\\\x00\""
            ],
            "{what}"
        );
    }
}

#[test]
fn broken_archives_are_refused() {
    let file = Item::file("f", "abc");
    let good = one(&file);
    let big = |type_flag| patched(&Item::new(type_flag, "x"), |b| put(b, 124, b"00004000001\0"));
    let text_map = |map: &str| {
        let mut content = map.as_bytes().to_vec();
        content.resize(1024, 0);
        let item = Item::file("f", &content).pax("GNU.sparse.major", "1").pax("GNU.sparse.minor", "0");
        plain(&[item.pax("GNU.sparse.realsize", "1000")])
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("ends in the middle", good[..300].to_vec()),
        ("ends in the middle", good[..512].to_vec()),
        ("ends in the middle", good[..514].to_vec()),
        ("ends in the middle", long(b'x', b"30 path")[..520].to_vec()),
        ("checksum", vec![1; 512]),
        ("checksum", [good.clone(), b"garbage ".repeat(64)].concat()),
        ("single block of zeros", [vec![0; 512], good.clone()].concat()),
        ("size is negative", patched(&file, |b| put(b, 124, &[0xff; 12]))),
        ("size is negative", plain(&[file.clone().pax("size", "-1")])),
        ("size is not a number", patched(&file, |b| put(b, 124, b"nonsense"))),
        ("user id", patched(&file, |b| put(b, 108, &[0xff; 8]))),
        ("user id", plain(&[file.clone().pax("uid", "4294967296")])),
        ("group id", plain(&[file.clone().pax("gid", "-1")])),
        ("pax number", plain(&[file.clone().pax("uid", "1x")])),
        ("pax time", plain(&[file.clone().pax("mtime", "1.2.3")])),
        ("zero byte", plain(&[file.clone().pax("path", "a\0b")])),
        ("pax record", [long(b'x', b"9 a=b\n"), good.clone()].concat()),
        ("LIBARCHIVE", plain(&[file.clone().pax("LIBARCHIVE.xattr.user.a", "!")])),
        ("device number", plain(&[Item::new(b'3', "c").device(4096, 0)])),
        ("type is none", plain(&[Item::new(b'M', "x")])),
        ("type is none", plain(&[Item::new(b'V', "x")])),
        ("another format", plain(&[Item::new(b'S', "x")])),
        ("1 MiB", big(b'x')),
        ("1 MiB", big(b'g')),
        ("1 MiB", big(b'L')),
        ("4,096 bytes", plain(&[Item::file(vec![b'a'; 4097], "")])),
        ("4,096 bytes", plain(&[Item::symlink("l", vec![b'a'; 4097])])),
        ("without its size", plain(&[file.clone().pax("GNU.sparse.map", "0,3")])),
        ("alternate", plain(&[file.clone().pax("GNU.sparse.numbytes", "1")])),
        ("sparse map is malformed", plain(&[file.clone().pax("GNU.sparse.map", "0,x")])),
        ("no length", plain(&[file.clone().pax("GNU.sparse.size", "9").pax("GNU.sparse.map", "0")])),
        ("out of order", plain(&[file.clone().pax("GNU.sparse.size", "2").pax("GNU.sparse.map", "0,3")])),
        ("disagree", plain(&[file.clone().pax("GNU.sparse.size", "9").pax("GNU.sparse.map", "0,2")])),
        ("version other", plain(&[file.clone().pax("GNU.sparse.major", "2")])),
        ("longer than its content", text_map("9999999999\n")),
        ("malformed", text_map("1\nx\n")),
        ("disagree", text_map("1\n0\n9\n")),
    ];
    for (expected, archive) in cases {
        let error = read(&archive).err().unwrap_or_else(|| panic!("{expected:?}: was accepted")).to_string();
        assert!(error.contains(expected), "expected {expected:?}, found {error:?}");
    }
}

/// GNU tar as an independent writer.
#[test]
fn archives_of_gnu_tar_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("file"), "content").unwrap();
    std::fs::hard_link(path("file"), path("hard")).unwrap();
    std::os::unix::fs::symlink("t".repeat(300), path("symlink")).unwrap();
    std::fs::write(path(&"long".repeat(60)), "x").unwrap();
    let sparse = std::fs::File::create(path("sparse")).unwrap();
    for n in 0..40 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", n << 18).unwrap();
    }
    sparse.set_len(12 << 20).unwrap();
    let formats: [&[&str]; 7] = [
        &["--format=gnu"],
        &["--format=gnu", "-S"],
        &["--format=posix"],
        &["--format=posix", "-S", "--sparse-version=0.0"],
        &["--format=posix", "-S", "--sparse-version=0.1"],
        &["--format=posix", "-S", "--sparse-version=1.0"],
        &["--format=posix", "--pax-option=globexthdr.name=g,comment=hello"],
    ];
    let mut listings = Vec::new();
    for format in formats {
        let mut command = Command::new("tar");
        command.args(["--sort=name", "-C"]).arg(directory.path()).args(format).args(["-c", "."]);
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => return d7y_skip::test(format_args!("GNU tar: {error}")),
        };
        assert!(output.status.success(), "{output:?}");
        let built = build(&output.stdout).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        let bytes: u64 = built.index.chunks.iter().map(|chunk| u64::from(chunk.frame_bytes)).sum();
        assert!(bytes < 100_000, "{format:?}: holes cost nothing, not {bytes} bytes");
        listings.push(listing(&built));
    }
    assert_eq!(listings[0].len(), 6);
    assert!(listings.iter().all(|listing| *listing == listings[0]), "every format tells the same");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn mutated_archives_never_bring_the_reader_down(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        reseal in any::<bool>(),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let item = |item: Item| item.xattr("user.a", "b").pax("LIBARCHIVE.xattr.user.c", "YQ");
        let mut archive = [
            long(b'L', b"some/long/name\0"),
            tar(&[
                item(Item::file("d/f", "abcde")).pax("GNU.sparse.size", "20").pax("GNU.sparse.map", "3,2,10,3"),
                Item::file("g", "0123456789").mtime("-1.5"),
                Item::hardlink("h", "g"),
                Item::symlink("s", "d"),
                Item::dir("s/x"),
                Item::new(b'3', ".wh.c"),
            ]),
        ].concat();
        for (at, value) in flips {
            let at = at.index(archive.len());
            archive[at] ^= value;
        }
        if reseal {
            let blocks = archive.as_chunks_mut::<512>().0;
            blocks.iter_mut().filter(|block| &block[257..262] == b"ustar").for_each(seal);
        }
        archive.truncate(cut.map_or(archive.len(), |cut| cut.index(archive.len())));
        if let Ok(built) = build(&archive) && built.index.device_bytes() < 1 << 24 {
            listing(&built);
        }
    }
}
