//! What the fuzzer starts from: a few inputs that reach the depths of each parser.

use std::path::PathBuf;

use d7y_image::{BuildOptions, Chunk, ChunkSink, build_layer};
use d7y_proto::local::{self, Request, Response, request, response};
use d7y_types::Compression;
use prost::Message;

use crate::fixture::{Item, compress, layer_ref, push_raw, seal, sha256, tar as archive};

type Seeds = Vec<Vec<u8>>;

/// Puts seeds into the corpus, which is the first directory on the command line.
pub fn write(seeds: Seeds) {
    let corpus = std::env::args_os().skip(1).map(PathBuf::from).find(|path| path.is_dir());
    let Some(corpus) = corpus else { return };
    for seed in seeds {
        let path = corpus.join(sha256(&seed).to_hex());
        if let Err(error) = std::fs::write(&path, seed) {
            eprintln!("cannot write the seed {}: {error}", path.display());
        }
    }
}

pub fn tar() -> Seeds {
    let plain: Vec<_> = archives()
        .into_iter()
        .flat_map(|tar| [[&[2], &tar[..]].concat(), [&[3], &tar[..]].concat()])
        .collect();
    let tar = archive(&tree());
    let gzip = [&[0], &compress(&tar, Compression::Gzip)[..]].concat();
    let zstd = [&[1], &compress(&tar, Compression::Zstd)[..]].concat();
    [plain, vec![gzip, zstd]].concat()
}

pub fn bootstrap() -> Seeds {
    built().into_iter().map(|(index, _)| index.bootstrap).collect()
}

pub fn index() -> Seeds {
    let sealed = |index: d7y_image::LayerIndex| [index.encode().expect("it is small"), vec![0; 96]].concat();
    built().into_iter().map(|(index, _)| sealed(index)).collect()
}

pub fn chunk() -> Seeds {
    let one = |(chunk, frame): &(Chunk, Vec<u8>)| [&chunk.encode()[..], frame].concat();
    built().iter().flat_map(|(_, frames)| frames.0.iter().map(one)).collect()
}

pub fn transfer() -> Seeds {
    let layer = serde_json::to_vec(&layer_ref(b"blob", b"tar", Compression::Gzip)).expect("plain data");
    let hello = message(1, 0, 1, b"node-1");
    let for_request = [&[7; 16][..], &[1, 0, 0, 0]].concat();
    let requests = [
        message(2, 0, 0, &layer),
        message(3, 0, 0, &[0; 64]),
        message(4, 0, 0, &[1, 0, 0, 0, 2, 0, 0, 0]),
        message(5, 0, 0, &for_request),
    ];
    let fetching = [
        message(22, 0, 0, &[0xff]),
        message(22, 0, 1, b""),
        message(20, 0, 1, b"frame"),
        message(21, 1, 2, b""),
        message(23, 2, 0, &[3, 0, 0, 0]),
    ];
    let opening = [
        message(16, 0, 0, &[1; 48]),
        message(21, 0, 1, b""),
        message(17, 0, 0, b"index"),
        message(18, 0, 0, b""),
    ];
    vec![hello, requests.concat(), fetching.concat(), opening.concat(), message(19, 0, 4, b"no")]
}

fn message(kind: u8, stream: u32, number: u32, payload: &[u8]) -> Vec<u8> {
    let words = [stream, number, payload.len() as u32];
    let words = words.into_iter().flat_map(u32::to_le_bytes);
    [kind, 0, 0, 0].into_iter().chain(words).chain(payload.iter().copied()).collect()
}

pub fn local() -> Seeds {
    let layer = d7y_peer_client::layer_to_wire(&layer_ref(b"blob", b"tar", Compression::Gzip));
    let digest = vec![7; 32];
    let runs = vec![local::TraceRun { layer: digest.clone(), first_chunk: 1, chunks: 2 }];
    let asked = [
        request::Kind::OpenImage(local::OpenImage {
            manifest_digest: digest.clone(),
            reference: "registry.example/app:1".into(),
            layers: vec![layer.clone()],
        }),
        request::Kind::OpenLayer(local::OpenLayer {
            layer: Some(layer),
            deadline_ms: 1,
            supply_deadline_ms: 2,
        }),
        request::Kind::EnsureRange(local::EnsureRange {
            digest: digest.clone(),
            offset: 1,
            length: 2,
            deadline_ms: 3,
            request_id: 4,
            span_id: 5,
        }),
        request::Kind::PutDescriptor(local::PutDescriptor { name: "fuse".into() }),
        request::Kind::RecordTrace(local::RecordTrace { manifest_digest: digest.clone(), runs }),
        request::Kind::PinLayers(local::PinLayers { digests: vec![digest.clone()] }),
        request::Kind::GetStatus(local::GetStatus {}),
    ];
    let failure = local::Failure { reason: local::Reason::Corrupt.into(), message: "no".into() };
    let status = local::LayerStatus { digest, chunks: 1, ..Default::default() };
    let answered = [
        response::Kind::Failure(failure),
        response::Kind::RangePresent(local::RangePresent {
            uncached: vec![1; 40],
            source: 2,
            parent: "10.0.0.1:4000".into(),
        }),
        response::Kind::Status(local::Status { layers: vec![status], ..Default::default() }),
    ];
    let requests = asked.map(|kind| Request { kind: Some(kind) }.encode_to_vec());
    let responses = answered.map(|kind| Response { kind: Some(kind) }.encode_to_vec());
    let messages = [&requests[..], &responses[..]].concat();
    let frame = |message: &Vec<u8>| {
        let length = (message.len() as u32).to_le_bytes();
        [&length[..], &9_u64.to_le_bytes(), message].concat()
    };
    let all = messages.iter().flat_map(frame).collect();
    messages.iter().map(frame).chain([all]).collect()
}

pub fn challenge() -> Seeds {
    [
        r#"Bearer realm="https://a/token",service="s",scope="repository:x/y:pull""#,
        "Basic realm=x, Bearer realm=https://a/token\nNegotiate YWJj/+==, Basic",
        r#"Basic realm="x, Bearer realm=\"https://evil/\"""#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

pub fn docker_config() -> Seeds {
    [
        r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},"registry.example:5000":{"identitytoken":"t"}}}"#,
        r#"{"auths":{"https://registry.example:5000/v2/":{"username":"u","password":"p"}},"credsStore":"pass"}"#,
        r#"{"credHelpers":{"registry.example:5000":"ecr-login"},"auths":{"docker.io":null}}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

pub fn image_document() -> Seeds {
    let digest = format!("sha256:{}", "0a".repeat(32));
    let platform = |os: &str, rest: &str| {
        format!(r#"{{"digest":"{digest}","size":1,"platform":{{"os":"{os}","architecture":"amd64"{rest}}}}}"#)
    };
    let layer = |media_type: &str| {
        format!(r#"{{"mediaType":"application/vnd.{media_type}","digest":"{digest}","size":7}}"#)
    };
    let (linux, variant) = (platform("linux", ""), platform("linux", r#","variant":"v2""#));
    let gzip = layer("docker.image.rootfs.diff.tar.gzip");
    [
        format!(r#"{{"schemaVersion":2,"manifests":[{linux},{variant},{}]}}"#, platform("unknown", "")),
        format!(r#"{{"config":{},"layers":[{gzip},{gzip}]}}"#, layer("oci.image.config.v1+json")),
        format!(r#"{{"config":{gzip},"layers":[{}]}}"#, layer("oci.image.layer.v1.tar+zstd")),
        format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["{digest}","{digest}"]}}}}"#),
    ]
    .map(String::into_bytes)
    .into()
}

pub fn image_name() -> Seeds {
    let digest = format!("sha256:{}", "0a".repeat(32));
    [
        "registry.example:5000/team/app:1.2".to_owned(),
        "https://harbor/v2/team/app/manifests/1.2".to_owned(),
        format!("[::1]:5000/app:1@{digest}"),
        "linux/arm64/v8".to_owned(),
    ]
    .map(String::into_bytes)
    .into()
}

#[derive(Default)]
struct Frames(Vec<(Chunk, Vec<u8>)>);

impl ChunkSink for Frames {
    fn chunk(&mut self, _: u32, chunk: &Chunk, frame: &[u8], _: &[u8]) -> std::io::Result<()> {
        self.0.push((*chunk, frame.to_vec()));
        Ok(())
    }
}

fn built() -> Vec<(d7y_image::LayerIndex, Frames)> {
    let build = |tar: &[u8]| {
        let mut frames = Frames::default();
        let spec = layer_ref(tar, tar, Compression::None);
        let index = build_layer(&spec, tar, &mut frames, &BuildOptions::default()).expect("a good layer");
        (index, frames)
    };
    archives().iter().map(|tar| build(tar)).collect()
}

fn archives() -> Seeds {
    let sparse = Item::file("GNUSparseFile.0/f", "abcde")
        .pax("GNU.sparse.name", "f")
        .pax("GNU.sparse.size", "20000")
        .pax("GNU.sparse.map", "3,2,10000,3");
    let many: Vec<_> = (0..200).map(|n| Item::file(format!("d/{n:03}"), vec![n as u8; n * 20])).collect();
    vec![archive(&[]), archive(&tree()), archive(&[sparse]), archive(&many), old_dialects()]
}

/// One of everything.
fn tree() -> Vec<Item> {
    vec![
        Item::dir("etc").mode(0o755).mtime("1700000000.5"),
        Item::file("etc/passwd", "root:x:0:0\n").owner(1000, 3_000_000),
        Item::symlink("etc/localtime", "../usr/share/zoneinfo/UTC"),
        Item::hardlink("etc/shadow", "etc/passwd"),
        Item::file("usr/bin/ping", vec![0x90; 9000]).xattr("security.capability", [1, 0, 0, 2]),
        Item::file(format!("deep/{}", "long/".repeat(40)), ""),
        Item::new(b'3', "dev/null").device(1, 3),
        Item::new(b'4', "dev/sda").device(8, 0),
        Item::new(b'6', "dev/log"),
        Item::file("var/.wh.gone", ""),
        Item::file("var/cache/.wh..wh..opq", ""),
        Item::file("zeros", vec![0; 70_000]),
    ]
}

/// GNU long names, and a sparse file as old tar wrote it.
fn old_dialects() -> Vec<u8> {
    let mut out = Vec::new();
    let name = [&b"n".repeat(150)[..], b"\0"].concat();
    let long = Item { data: name.clone(), ..Item::new(b'L', "././@LongLink") };
    push_raw(&mut out, &crate::fixture::header(&long, name.len(), 0), &name);
    push_raw(&mut out, &crate::fixture::header(&Item::new(b'0', "n"), 3, 0), b"abc");
    let mut sparse = crate::fixture::header(&Item::new(b'S', "f"), 5, 0);
    sparse[257..265].copy_from_slice(b"ustar  \0");
    sparse[386..434].copy_from_slice(b"00000000003\x0000000000002\x0000000000012\x0000000000003\0");
    sparse[483..495].copy_from_slice(b"00000000024\0");
    seal(&mut sparse);
    push_raw(&mut out, &sparse, b"abcde");
    out.extend([0; 1024]);
    out
}
