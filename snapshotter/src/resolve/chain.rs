use d7y_types::Sha256Digest;
use sha2::{Digest, Sha256};

/// The chain id of every layer, bottom first (OCI image specification, config.md, "Layer ChainID").
pub fn chain_ids(diff_ids: &[Sha256Digest]) -> Vec<Sha256Digest> {
    let mut chain: Vec<Sha256Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => *diff_id,
            Some(below) => sha256(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain
}

pub(super) fn sha256(bytes: &[u8]) -> Sha256Digest {
    Sha256Digest(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_specification() {
        let digest = |text: &str| sha256(text.as_bytes());
        let (a, b, c) = (digest("a"), digest("b"), digest("c"));
        let ab = sha256(format!("{a} {b}").as_bytes());
        let abc = sha256(format!("{ab} {c}").as_bytes());
        assert_eq!(chain_ids(&[a, b, c]), [a, ab, abc]);
        assert_eq!(chain_ids(&[]), []);
        // Computed with sha256sum.
        assert_eq!(ab.to_string(), "sha256:51c0c8ace48498d6f5fee6b0592cc06f2da0f3cbe09c5a34a97dce85c3889676",);
    }
}
