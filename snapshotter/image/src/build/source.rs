//! The blob's bytes on their way to the tar reader: counted, hashed, decompressed, hashed again.

use std::io::{self, BufReader, Read};

use d7y_types::{Compression, LayerRef, Sha256Digest};
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::{Limits, READ_BYTES};

/// Why the stream stopped, when it was not its content.
pub(super) enum SourceFailure {
    Read(io::Error),
    Limit(&'static str),
}

/// The uncompressed stream. Its errors only say that there is one; `take_failure` has the reason unless the
/// content does not decompress.
pub(super) struct Plain<R> {
    decoder: Decoder<Blob<R>>,
    sha: Sha256,
    bytes: u64,
    limits: Limits,
    broken_limit: Option<&'static str>,
}

enum Decoder<R> {
    None(R),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(zstd::Decoder<'static, BufReader<R>>),
}

/// The compressed stream, read to at most one byte past its announced size.
struct Blob<R> {
    input: R,
    sha: Sha256,
    bytes: u64,
    size: u64,
    failure: Option<io::Error>,
}

impl<R: Read> Plain<R> {
    pub(super) fn new(spec: &LayerRef, input: R, limits: &Limits) -> io::Result<Self> {
        let blob = Blob { input, sha: Sha256::new(), bytes: 0, size: spec.size, failure: None };
        let buffered = |blob| BufReader::with_capacity(READ_BYTES, blob);
        let decoder = match spec.compression {
            Compression::None => Decoder::None(blob),
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(buffered(blob)))),
            Compression::Zstd => Decoder::Zstd(zstd::Decoder::with_buffer(buffered(blob))?),
        };
        Ok(Self { decoder, sha: Sha256::new(), bytes: 0, limits: limits.clone(), broken_limit: None })
    }

    /// Reads what is left of the uncompressed stream.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        while self.read(&mut buffer)? > 0 {}
        Ok(())
    }

    pub(super) fn take_failure(&mut self) -> Option<SourceFailure> {
        let failure = self.decoder.blob().failure.take().map(SourceFailure::Read);
        self.broken_limit.take().map(SourceFailure::Limit).or(failure)
    }

    /// The diff id; and length and digest of the blob, whose remaining bytes are read for it.
    pub(super) fn digests(mut self) -> (Sha256Digest, io::Result<(u64, Sha256Digest)>) {
        let blob = self.decoder.blob();
        let rest = io::copy(blob, &mut io::sink());
        let failure = blob.failure.take();
        let digest = Sha256Digest(std::mem::take(&mut blob.sha).finalize().into());
        let blob = rest.map(|_| (blob.bytes, digest)).map_err(|error| failure.unwrap_or(error));
        (Sha256Digest(self.sha.finalize().into()), blob)
    }

    fn check_limits(&mut self) -> io::Result<()> {
        let blob_bytes = self.decoder.blob().bytes;
        let Limits { uncompressed_bytes, expansion_ratio, ratio_from_bytes, .. } = self.limits;
        let broken = if self.bytes > uncompressed_bytes {
            "it is larger, uncompressed, than limits.uncompressed_bytes"
        } else if self.bytes > ratio_from_bytes && self.bytes / expansion_ratio > blob_bytes {
            "it expands more than limits.expansion_ratio allows"
        } else {
            return Ok(());
        };
        self.broken_limit = Some(broken);
        Err(io::Error::other(broken))
    }
}

impl<R: Read> Read for Plain<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let bytes = match &mut self.decoder {
            Decoder::None(blob) => blob.read(out),
            Decoder::Gzip(gzip) => gzip.read(out),
            Decoder::Zstd(zstd) => zstd.read(out),
        }?;
        self.sha.update(&out[..bytes]);
        self.bytes += bytes as u64;
        self.check_limits()?;
        Ok(bytes)
    }
}

impl<R: Read> Decoder<Blob<R>> {
    fn blob(&mut self) -> &mut Blob<R> {
        match self {
            Self::None(blob) => blob,
            Self::Gzip(gzip) => gzip.get_mut().get_mut(),
            Self::Zstd(zstd) => zstd.get_mut().get_mut(),
        }
    }
}

impl<R: Read> Read for Blob<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = (self.size + 1).saturating_sub(self.bytes);
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
        let read = self.input.read(&mut out[..room]).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.failure = Some(io::Error::new(error.kind(), error.to_string()));
            }
        })?;
        self.sha.update(&out[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}
