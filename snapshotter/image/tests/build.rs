//! The build as a whole: digests, decompression, chunks, limits, and what it says when something is wrong.

mod fixture;

use std::io::{self, Read, Write};

use d7y_image::{
    BuildError, BuildOptions, Chunk, ChunkSink, Codec, LayerIndex, Limits, NodeKind, build_layer, layer_tree,
};
use d7y_types::{Compression, LayerRef};
use fixture::{Built, Item, Store, build, build_with, compress, layer_ref, listing, sha256, tar};
use proptest::prelude::*;

const KIB: usize = 1024;

/// Bytes that do not compress.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = bytes as u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// Blocks and codec of each chunk.
fn chunks(index: &LayerIndex) -> Vec<(u32, Codec)> {
    index.chunks.iter().map(|chunk| (chunk.blocks, chunk.codec)).collect()
}

fn file(built: &Built, path: &str) -> Vec<u8> {
    let tree = layer_tree(&built.index).expect("what is built can be read");
    match tree.node(tree.lookup(path.as_bytes()).expect(path)).kind {
        NodeKind::Regular { device_offset, size } => built.store.read(device_offset, size),
        _ => panic!("{path} is not a file"),
    }
}

#[test]
fn content_is_cut_into_chunks_that_no_large_file_shares() {
    use Codec::{Raw, Zero, Zstd};
    let text = |bytes| "text ".repeat(bytes / 5 + 1)[..bytes].to_owned().into_bytes();
    type Case = (&'static str, Vec<Vec<u8>>, Vec<(u32, Codec)>);
    let cases: Vec<Case> = vec![
        ("nothing", vec![], vec![]),
        ("empty files", vec![vec![], vec![]], vec![]),
        ("neighbours share", vec![text(10), text(4096), text(4097)], vec![(4, Zstd)]),
        ("until a chunk is full", vec![text(40 * KIB), text(24 * KIB), text(1)], vec![(16, Zstd), (1, Zstd)]),
        ("or the next does not fit", vec![text(40 * KIB), text(25 * KIB)], vec![(10, Zstd), (7, Zstd)]),
        ("exactly one chunk", vec![text(1), text(64 * KIB)], vec![(1, Zstd), (16, Zstd)]),
        (
            "long files stand alone",
            vec![text(1), text(65 * KIB), text(1)],
            vec![(1, Zstd), (16, Zstd), (1, Zstd), (1, Zstd)],
        ),
        ("noise stays raw", vec![noise(64 * KIB), text(9)], vec![(16, Raw), (1, Zstd)]),
        (
            "large files have larger chunks",
            vec![text((4 << 20) + 1)],
            [vec![(32, Zstd); 32], vec![(1, Zstd)]].concat(),
        ),
        ("zeros are not stored", vec![vec![0; 300 * KIB], text(1)], vec![(75, Zero), (1, Zstd)]),
        (
            "zeros of neighbours join",
            vec![vec![0; 99 * KIB], vec![0; 5], vec![0; 99 * KIB]],
            vec![(51, Zero)],
        ),
        (
            "zeros inside a file",
            vec![[text(64 * KIB), vec![0; 128 * KIB], text(4)].concat()],
            vec![(16, Zstd), (32, Zero), (1, Zstd)],
        ),
    ];
    for (what, files, expected) in cases {
        let items: Vec<Item> =
            files.iter().enumerate().map(|(n, data)| Item::file(format!("f{n}"), data)).collect();
        let built = build_with(&tar(&items), Compression::Gzip, &BuildOptions::default()).unwrap();
        assert_eq!(chunks(&built.index), expected, "{what}");
        for (n, data) in files.iter().enumerate() {
            assert!(file(&built, &format!("f{n}")) == *data, "{what}: content of f{n}");
        }
        assert_eq!(built.index.pack_bytes(), built.store.pack.len() as u64);
    }
}

#[test]
fn a_hole_of_a_tebibyte_costs_nothing() {
    let (tib, mib) = (1u64 << 40, 1u64 << 20);
    let sparse = |size: u64| {
        let map = format!("{},5", size - mib - 3);
        Item::file("f", "abcde").pax("GNU.sparse.size", size.to_string()).pax("GNU.sparse.map", map)
    };
    let built = build(&tar(&[sparse(tib), Item::file("g", "after")])).unwrap();
    // The five bytes lie across a chunk's border.
    let codecs: Vec<Codec> = built.index.chunks.iter().map(|chunk| chunk.codec).collect();
    assert_eq!(codecs, [Codec::Zero, Codec::Zstd, Codec::Zstd, Codec::Zero, Codec::Zstd]);
    assert!(built.index.device_bytes() > tib && built.index.pack_bytes() < 200);
    assert_eq!(file(&built, "g"), b"after");
    assert_eq!(built.store.read(tib - mib - 4, 7), b"\0abcde\0");
    let error = build(&tar(&[sparse(9 * tib)])).err().unwrap();
    assert!(matches!(error, BuildError::Limit(_)), "{error:?}");
}

#[test]
fn every_compression_gives_the_same_index() {
    let archive =
        tar(&[Item::file("a", noise(200 * KIB)), Item::file("b", vec![7; 90 * KIB]), Item::dir("c")]);
    let plain = build(&archive).unwrap();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let built = build_with(&archive, compression, &BuildOptions::default()).unwrap();
        assert_eq!(LayerIndex { layer: plain.index.layer, ..built.index }, plain.index);
        assert_eq!(built.store.pack, plain.store.pack);
    }
    // Several members or frames follow one another: pigz, eStargz, zstd:chunked.
    for compression in [Compression::Gzip, Compression::Zstd] {
        let blob: Vec<u8> = archive.chunks(50_000).flat_map(|part| compress(part, compression)).collect();
        let index = build_layer(
            &layer_ref(&blob, &archive, compression),
            &blob[..],
            &mut Store::new(),
            &BuildOptions::default(),
        );
        assert_eq!(index.unwrap().bootstrap, plain.index.bootstrap, "{compression:?}");
    }
}

/// A blob that is not what it should be, and how.
fn wrong(change: impl Fn(&mut Vec<u8>, &mut LayerRef), compression: Compression) -> BuildError {
    let archive = tar(&[Item::file("a", noise(300 * KIB))]);
    let mut blob = compress(&archive, compression);
    let mut spec = layer_ref(&blob, &archive, compression);
    change(&mut blob, &mut spec);
    build_layer(&spec, &blob[..], &mut Store::new(), &BuildOptions::default()).expect_err("it was accepted")
}

#[test]
fn damage_is_told_from_forgery() {
    for compression in [Compression::Gzip, Compression::Zstd, Compression::None] {
        let flip = |at: usize| move |blob: &mut Vec<u8>, _: &mut LayerRef| blob[at] ^= 0x10;
        for at in [0, 9, 100, 5_000, 250_000] {
            let error = wrong(flip(at), compression);
            assert!(matches!(error, BuildError::DigestMismatch { .. }), "{compression:?} {at}: {error:?}");
        }
        let cut = wrong(|blob, _| blob.truncate(100_000), compression);
        assert!(matches!(cut, BuildError::Truncated { found: 100_000, .. }), "{cut:?}");
        let none = wrong(|blob, _| blob.clear(), compression);
        assert!(matches!(none, BuildError::Truncated { found: 0, .. }), "{none:?}");
        let longer = wrong(|blob, _| blob.push(0), compression);
        assert!(matches!(longer, BuildError::Size { .. }), "{longer:?}");
        let diff_id = wrong(|_, spec| spec.diff_id = sha256(b"other"), compression);
        assert!(matches!(diff_id, BuildError::DiffIdMismatch { .. }), "{diff_id:?}");
        // The blob is what the manifest says, but no layer.
        let bad = wrong(
            |blob, spec| {
                *blob = compress(&b"nonsense".repeat(1000), compression);
                *spec = layer_ref(blob, b"", compression);
            },
            compression,
        );
        assert!(matches!(bad, BuildError::Tar { offset: 0, .. }), "{bad:?}");
        let published_cut = wrong(
            |blob, spec| {
                blob.truncate(100_000);
                *spec = layer_ref(blob, b"", compression);
            },
            compression,
        );
        match compression {
            Compression::None => {
                assert!(matches!(published_cut, BuildError::Tar { .. }), "{published_cut:?}")
            }
            _ => assert!(matches!(published_cut, BuildError::Decompress(_)), "{published_cut:?}"),
        }
    }
    let trailing = wrong(
        |blob, spec| {
            blob.extend(b"junk after the gzip member");
            *spec = LayerRef { diff_id: spec.diff_id, ..layer_ref(blob, b"", Compression::Gzip) };
        },
        Compression::Gzip,
    );
    assert!(matches!(trailing, BuildError::Decompress(_)), "{trailing:?}");
}

#[test]
fn limits_stop_a_build_early() {
    let big = tar(&[Item::file("zeros", vec![0; 8 << 20])]);
    let many = tar(&(0..50).map(|n| Item::file(format!("d{n}/f"), "")).collect::<Vec<_>>());
    let noisy = tar(&[Item::file("noise", noise(1 << 20))]);
    let heavy = tar(&[Item::file("f", "").xattr("user.a", vec![b'x'; 60_000])]);
    let tight = Limits { ratio_from_bytes: 1 << 20, ..Limits::default() };
    let cases: [(&[u8], Limits, &str); 7] = [
        (&big, Limits { uncompressed_bytes: 4 << 20, ..Limits::default() }, "limits.uncompressed_bytes"),
        (&big, Limits { expansion_ratio: 100, ..tight.clone() }, "limits.expansion_ratio"),
        (&big, Limits { device_bytes: 4 << 20, ..Limits::default() }, "limits.device_bytes"),
        (&many, Limits { entries: 40, ..Limits::default() }, "more than 40 files"),
        (&many, Limits { entries: 75, ..Limits::default() }, "more than 75 files"),
        (&noisy, Limits { chunks: 15, ..Limits::default() }, "limits.chunks"),
        (&heavy, Limits { metadata_bytes: 50_000, ..Limits::default() }, "50000 bytes of names"),
    ];
    for (archive, limits, expected) in cases {
        let options = BuildOptions { limits, ..BuildOptions::default() };
        let error = build_with(archive, Compression::Gzip, &options).err().expect(expected).to_string();
        assert!(error.contains(expected), "expected {expected:?}, found {error:?}");
    }
    let generous =
        BuildOptions { limits: Limits { expansion_ratio: 5000, ..tight }, ..BuildOptions::default() };
    assert!(build_with(&big, Compression::Gzip, &generous).is_ok());
}

#[test]
fn a_bomb_stops_at_its_limit_and_not_after_it() {
    struct Counted<R>(R, u64);
    impl<R: Read> Read for Counted<R> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            self.0.read(out).inspect(|read| self.1 += *read as u64)
        }
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let size = 512u64 << 20;
    gzip.write_all(&fixture::header(&Item::new(b'0', "zeros"), size as usize, 0)).unwrap();
    io::copy(&mut io::repeat(0).take(size), &mut gzip).unwrap();
    let blob = gzip.finish().unwrap();
    let spec = layer_ref(&blob, b"", Compression::Gzip);
    let limits = Limits { uncompressed_bytes: 1 << 20, ..Limits::default() };
    let options = BuildOptions { limits, ..BuildOptions::default() };
    let mut source = Counted(&blob[..], 0);
    let error = build_layer(&spec, &mut source, &mut Store::new(), &options).err();
    assert!(matches!(error, Some(BuildError::Limit(_))), "{error:?}");
    assert!(source.1 < blob.len() as u64 / 4, "{} of {} bytes were read", source.1, blob.len());
}

#[test]
fn sources_and_sinks_that_fail_are_heard() {
    struct Failing(usize);
    impl ChunkSink for Failing {
        fn chunk(&mut self, _: u32, _: &Chunk, _: &[u8], _: &[u8]) -> io::Result<()> {
            self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
            Ok(())
        }
    }
    struct Broken<'b>(&'b [u8]);
    impl Read for Broken<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() { Err(io::ErrorKind::ConnectionReset.into()) } else { self.0.read(out) }
        }
    }
    let archive = tar(&[Item::file("a", noise(3 << 20))]);
    for compression in [Compression::Gzip, Compression::Zstd, Compression::None] {
        let blob = compress(&archive, compression);
        let spec = layer_ref(&blob, &archive, compression);
        for good in [0, 1, 20, 47] {
            let error = build_layer(&spec, &blob[..], &mut Failing(good), &BuildOptions::default()).err();
            let Some(BuildError::Sink(error)) = error else { panic!("{good}: {error:?}") };
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
        for length in [0, 5, 1000, blob.len() - 1] {
            let source = Broken(&blob[..length]);
            let error = build_layer(&spec, source, &mut Store::new(), &BuildOptions::default()).err();
            let Some(BuildError::Read(error)) = error else { panic!("{length}: {error:?}") };
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }
}

/// A chunk reaches the sink while the source still has the next bytes to give.
#[test]
fn chunks_are_handed_on_while_the_source_is_silent() {
    use std::sync::mpsc::{Receiver, Sender, channel};
    struct Announce(Sender<u32>);
    impl ChunkSink for Announce {
        fn chunk(&mut self, number: u32, _: &Chunk, _: &[u8], _: &[u8]) -> io::Result<()> {
            // The source, which listens, goes before the last chunks come.
            let _ = self.0.send(number);
            Ok(())
        }
    }
    /// Gives the second half only after the first chunks have been announced.
    struct Waiting<'b>(&'b [u8], &'b [u8], Receiver<u32>);
    impl Read for Waiting<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() && !self.1.is_empty() {
                for expected in 0..8 {
                    let deadline = std::time::Duration::from_secs(20);
                    assert_eq!(self.2.recv_timeout(deadline), Ok(expected), "the sink waits for the source");
                }
                self.0 = std::mem::take(&mut self.1);
            }
            self.0.read(out)
        }
    }
    let archive = tar(&[Item::file("a", noise(2 << 20))]);
    let (sender, receiver) = channel();
    let (first, second) = archive.split_at(9 * 64 * KIB);
    let spec = layer_ref(&archive, &archive, Compression::None);
    let source = Waiting(first, second, receiver);
    build_layer(&spec, source, &mut Announce(sender), &BuildOptions::default()).unwrap();
}

#[test]
fn options_that_make_no_sense_are_refused() {
    for (chunk_bytes, large_chunk_bytes) in [(0, 4096), (4096, 100), (4097, 4096), (2 << 20, 4096)] {
        let options = BuildOptions { chunk_bytes, large_chunk_bytes, ..BuildOptions::default() };
        let error = build_with(&tar(&[]), Compression::None, &options).err();
        assert!(
            matches!(error, Some(BuildError::Options(_))),
            "{chunk_bytes} {large_chunk_bytes}: {error:?}"
        );
    }
}

#[test]
fn sixty_five_thousand_files_in_one_directory_are_a_layer() {
    let items: Vec<Item> = (0..65_536).map(|n| Item::file(format!("d/file-{n}"), [n as u8; 3])).collect();
    let built = build_with(&tar(&items), Compression::Gzip, &BuildOptions::default()).unwrap();
    assert_eq!(file(&built, "d/file-65535"), [255; 3]);
    let tree = layer_tree(&built.index).unwrap();
    assert_eq!(tree.children(tree.lookup(b"d").unwrap()).unwrap().len(), 65_536);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Files of any size and mix of zeros and bytes come back, whatever the chunk sizes.
    #[test]
    fn content_comes_back(
        files in proptest::collection::vec(proptest::collection::vec((any::<bool>(), 0..90_000usize), 0..4), 0..8),
        chunk_blocks in 1..20u32,
    ) {
        let content = |parts: &Vec<(bool, usize)>| -> Vec<u8> {
            parts.iter().flat_map(|(zero, bytes)| if *zero { vec![0; *bytes] } else { noise(*bytes) }).collect()
        };
        let files: Vec<Vec<u8>> = files.iter().map(content).collect();
        let items: Vec<Item> =
            files.iter().enumerate().map(|(n, data)| Item::file(format!("f{n}"), data)).collect();
        let options = BuildOptions { chunk_bytes: chunk_blocks * 4096, ..BuildOptions::default() };
        let built = build_with(&tar(&items), Compression::None, &options).unwrap();
        for (n, data) in files.iter().enumerate() {
            prop_assert!(file(&built, &format!("f{n}")) == *data, "f{}", n);
        }
        prop_assert_eq!(listing(&built).len(), files.len() + 1);
    }
}
