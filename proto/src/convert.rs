use crate::local;
use d7y_types::{Compression, LayerRef, Sha256Digest};

/// A message that names no valid layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    #[error("a digest has {0} bytes instead of 32")]
    Digest(usize),
    #[error("compression {0} is unknown")]
    Compression(i32),
    #[error("the layer's {0} is empty")]
    Empty(&'static str),
}

pub fn digest_from_wire(raw: &[u8]) -> Result<Sha256Digest, ConvertError> {
    raw.try_into().map(Sha256Digest).map_err(|_| ConvertError::Digest(raw.len()))
}

pub fn layer_to_wire(layer: &LayerRef) -> local::Layer {
    let compression = match layer.compression {
        Compression::None => local::Compression::None,
        Compression::Gzip => local::Compression::Gzip,
        Compression::Zstd => local::Compression::Zstd,
    };
    local::Layer {
        registry: layer.registry.clone(),
        repository: layer.repository.clone(),
        digest: layer.digest.0.to_vec(),
        diff_id: layer.diff_id.0.to_vec(),
        size: layer.size,
        compression: compression.into(),
    }
}

pub fn layer_from_wire(layer: local::Layer) -> Result<LayerRef, ConvertError> {
    let compression = match local::Compression::try_from(layer.compression) {
        Ok(local::Compression::None) => Compression::None,
        Ok(local::Compression::Gzip) => Compression::Gzip,
        Ok(local::Compression::Zstd) => Compression::Zstd,
        Ok(local::Compression::Unspecified) | Err(_) => {
            return Err(ConvertError::Compression(layer.compression));
        }
    };
    if layer.registry.is_empty() {
        return Err(ConvertError::Empty("registry"));
    }
    if layer.repository.is_empty() {
        return Err(ConvertError::Empty("repository"));
    }
    Ok(LayerRef {
        registry: layer.registry,
        repository: layer.repository,
        digest: digest_from_wire(&layer.digest)?,
        diff_id: digest_from_wire(&layer.diff_id)?,
        size: layer.size,
        compression,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer() -> LayerRef {
        LayerRef {
            registry: "registry.example:5000".into(),
            repository: "library/python".into(),
            digest: Sha256Digest([1; 32]),
            diff_id: Sha256Digest([2; 32]),
            size: 3,
            compression: Compression::Zstd,
        }
    }

    #[test]
    fn layers_survive_the_wire() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let layer = LayerRef { compression, ..layer() };
            assert_eq!(layer_from_wire(layer_to_wire(&layer)), Ok(layer));
        }
    }

    #[test]
    fn malformed_layers_are_refused() {
        let wire = layer_to_wire(&layer());
        let table = [
            (local::Layer { digest: vec![0; 31], ..wire.clone() }, ConvertError::Digest(31)),
            (local::Layer { diff_id: vec![], ..wire.clone() }, ConvertError::Digest(0)),
            (local::Layer { compression: 9, ..wire.clone() }, ConvertError::Compression(9)),
            (local::Layer { compression: 0, ..wire.clone() }, ConvertError::Compression(0)),
            (local::Layer { registry: String::new(), ..wire.clone() }, ConvertError::Empty("registry")),
            (local::Layer { repository: String::new(), ..wire }, ConvertError::Empty("repository")),
        ];
        for (wire, expected) in table {
            assert_eq!(layer_from_wire(wire), Err(expected));
        }
    }
}
