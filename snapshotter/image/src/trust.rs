//! Who may say what a layer's chunks are: an index counts only when a key of the cluster signed it.

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use crate::index::{IndexError, LayerIndex};

/// Public key (32) and Ed25519 signature (64) at the end of a sealed index.
pub(crate) const TRAILER_BYTES: usize = 96;
const KEY_BYTES: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("the layer index is signed by no key that this node trusts; compare indexTrust.publicKeys")]
    UnknownKey,
    #[error("the layer index's signature is wrong")]
    Signature,
    #[error("the signing key is not 32 bytes of hex")]
    Key,
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// Signs the indexes that this process builds.
pub struct IndexSigner(Ed25519KeyPair);

impl IndexSigner {
    /// From the 32-byte Ed25519 seed, in hex (RFC 8032, section 5.1.5).
    pub fn from_hex(seed: &str) -> Result<Self, TrustError> {
        let raw = decode_hex(seed).ok_or(TrustError::Key)?;
        Ed25519KeyPair::from_seed_unchecked(&raw).map(Self).map_err(|_| TrustError::Key)
    }

    pub fn public_key(&self) -> [u8; KEY_BYTES] {
        let mut out = [0; KEY_BYTES];
        out.copy_from_slice(self.0.public_key().as_ref());
        out
    }

    /// Encodes and signs.
    pub fn seal(&self, index: &LayerIndex) -> Result<Vec<u8>, IndexError> {
        let mut out = index.encode()?;
        let signature = self.0.sign(&out);
        out.extend_from_slice(&self.public_key());
        out.extend_from_slice(signature.as_ref());
        Ok(out)
    }
}

/// The keys whose word this node takes for an index that it did not build.
#[derive(Debug, Clone, Default)]
pub struct TrustedKeys(Vec<[u8; KEY_BYTES]>);

impl TrustedKeys {
    pub fn from_hex<'a>(keys: impl IntoIterator<Item = &'a str>) -> Result<Self, TrustError> {
        let keys = keys.into_iter().map(|key| decode_hex(key).ok_or(TrustError::Key));
        keys.collect::<Result<_, _>>().map(Self)
    }

    pub fn add(&mut self, key: [u8; KEY_BYTES]) {
        self.0.push(key);
    }

    /// Checks that one of these keys signed the index, then parses it.
    pub fn open(&self, sealed: &[u8]) -> Result<LayerIndex, TrustError> {
        let key = Trailer::split(sealed)?.key;
        if !self.0.iter().any(|trusted| trusted == key) {
            return Err(TrustError::UnknownKey);
        }
        open_unchanged(sealed)
    }
}

/// Opens an index that this node has taken on trust before: every bit is as its signer left it, whoever that was. For
/// what was on disk meanwhile; keys that the configuration no longer names stop new indexes, not mounted ones.
pub fn open_unchanged(sealed: &[u8]) -> Result<LayerIndex, TrustError> {
    let Trailer { body, key, signature } = Trailer::split(sealed)?;
    UnparsedPublicKey::new(&ED25519, key).verify(body, signature).map_err(|_| TrustError::Signature)?;
    Ok(LayerIndex::decode(sealed)?)
}

struct Trailer<'a> {
    body: &'a [u8],
    key: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Trailer<'a> {
    fn split(sealed: &'a [u8]) -> Result<Self, IndexError> {
        let body = sealed.len().checked_sub(TRAILER_BYTES).ok_or(IndexError::Length("trailer"))?;
        let (body, trailer) = sealed.split_at(body);
        let (key, signature) = trailer.split_at(KEY_BYTES);
        Ok(Self { body, key, signature })
    }
}

fn decode_hex(text: &str) -> Option<[u8; KEY_BYTES]> {
    let digits = text.trim().as_bytes();
    if digits.len() != 2 * KEY_BYTES {
        return None;
    }
    let nibble = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let mut out = [0; KEY_BYTES];
    for (byte, pair) in out.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use d7y_types::Sha256Digest;

    use super::*;

    fn signer(digit: &str) -> IndexSigner {
        IndexSigner::from_hex(&digit.repeat(64)).unwrap()
    }

    fn index() -> LayerIndex {
        let (layer, diff_id) = (Sha256Digest([3; 32]), Sha256Digest([4; 32]));
        LayerIndex { layer, diff_id, chunks: vec![], implied: vec![], bootstrap: vec![5; 4096] }
    }

    #[test]
    fn only_trusted_and_unchanged_indexes_open() {
        let sealed = signer("1").seal(&index()).unwrap();
        let mut trusted = TrustedKeys::default();
        assert!(matches!(trusted.open(&sealed), Err(TrustError::UnknownKey)));
        trusted.add(signer("2").public_key());
        assert!(matches!(trusted.open(&sealed), Err(TrustError::UnknownKey)));
        trusted.add(signer("1").public_key());
        assert_eq!(trusted.open(&sealed).unwrap(), index());
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert!(trusted.open(&bad).is_err(), "a flip at {at} went unseen");
            assert!(open_unchanged(&bad).is_err(), "a flip at {at} went unseen without keys");
            assert!(trusted.open(&sealed[..at]).is_err(), "a cut at {at} went unseen");
        }
        assert_eq!(open_unchanged(&sealed).unwrap(), index());
    }

    #[test]
    fn keys_are_32_bytes_of_hex() {
        let good = "0aF".repeat(22)[..64].to_owned();
        assert!(TrustedKeys::from_hex([good.as_str(), &format!(" {good}\n")]).is_ok());
        for bad in ["", &good[1..], &format!("{good}0"), &format!("g{}", &good[1..]), &"é".repeat(32)] {
            assert!(matches!(TrustedKeys::from_hex([bad]), Err(TrustError::Key)), "{bad:?} was accepted");
            assert!(IndexSigner::from_hex(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
