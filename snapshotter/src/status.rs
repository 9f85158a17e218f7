//! Errors as containerd understands them: gRPC codes (containerd, `errdefs/grpc.go`).

use std::error::Error;

use d7y_proto::local::Reason;
use tonic::{Code, Status};

use crate::error::SnapshotError;
use crate::layers::{DeviceError, LayerError};
use crate::meta::MetaError;

impl From<SnapshotError> for Status {
    fn from(error: SnapshotError) -> Self {
        let code = code(&error);
        let text = chain(&error);
        match code {
            Code::Internal | Code::DataLoss | Code::Unavailable => tracing::error!("{text}"),
            _ => tracing::debug!("{text}"),
        }
        Self::new(code, text)
    }
}

fn code(error: &SnapshotError) -> Code {
    match error {
        SnapshotError::Meta(error) | SnapshotError::Layer(LayerError::Registry(error)) => meta_code(error),
        SnapshotError::Layer(error) => layer_code(error),
        SnapshotError::Corrupt { .. } => Code::DataLoss,
        SnapshotError::File { .. } | SnapshotError::Interrupted => Code::Internal,
    }
}

fn meta_code(error: &MetaError) -> Code {
    match error {
        MetaError::AlreadyExists(_) => Code::AlreadyExists,
        MetaError::NotFound(_) => Code::NotFound,
        MetaError::NotActive(_) | MetaError::Committed(_) | MetaError::HasChildren(_) => {
            Code::FailedPrecondition
        }
        MetaError::ParentNotCommitted(_)
        | MetaError::OtherParent { .. }
        | MetaError::Immutable(_)
        | MetaError::NoName
        | MetaError::Filter(_) => Code::InvalidArgument,
        MetaError::NumbersExhausted | MetaError::Database(_) | MetaError::Row(_) => Code::Internal,
    }
}

fn layer_code(error: &LayerError) -> Code {
    match error {
        LayerError::Device(DeviceError::Peer { source, .. }) => match source.reason() {
            Reason::Corrupt => Code::DataLoss,
            Reason::Unavailable | Reason::Deadline => Code::Unavailable,
            Reason::Unauthorized => Code::PermissionDenied,
            _ => Code::Internal,
        },
        LayerError::Device(DeviceError::Busy { .. }) | LayerError::Pins => Code::Unavailable,
        LayerError::Read { .. } | LayerError::Write { .. } => Code::DataLoss,
        _ => Code::Internal,
    }
}

/// The whole chain of causes in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_that_containerd_turns_back_into_its_errors() {
        let name = || String::from("n");
        let table = [
            (MetaError::AlreadyExists(name()), Code::AlreadyExists),
            (MetaError::NotFound(name()), Code::NotFound),
            (MetaError::HasChildren(name()), Code::FailedPrecondition),
            (MetaError::NotActive(name()), Code::FailedPrecondition),
            (MetaError::Committed(name()), Code::FailedPrecondition),
            (MetaError::ParentNotCommitted(name()), Code::InvalidArgument),
            (MetaError::Immutable(name()), Code::InvalidArgument),
        ];
        for (error, code) in table {
            let text = error.to_string();
            let status = Status::from(SnapshotError::from(error));
            assert_eq!((status.code(), status.message()), (code, text.as_str()));
        }
    }
}
