//! The piece protocol between peers: framed, over TCP.
//!
//! A connection either *opens* one layer (chunks as they are made, then the sealed index) or *fetches* chunks of any
//! number of layers. Either way the client speaks first.
//!
//! Every frame has a header of 16 bytes, integers little-endian:
//!
//! | Offset | Size | Field |
//! |---|---|---|
//! | 0 | 1 | kind |
//! | 1 | 1 | lane: 0 demand, 1 prefetch, 2 background |
//! | 2 | 2 | reserved, 0 |
//! | 4 | 4 | stream: the client's number for a layer on this connection |
//! | 8 | 4 | number: a chunk, or what the kind says |
//! | 12 | 4 | payload bytes, at most [`MAX_PAYLOAD_BYTES`] |
//!
//! | Kind | From | Payload |
//! |---|---|---|
//! | 1 Hello | both | UTF-8 peer id; `number` is the protocol version, 1 |
//! | 2 Open | client | [`d7y_types::LayerRef`] as JSON |
//! | 3 Bind | client | 32-byte layer digest: what `stream` stands for from now on; answered by Holding |
//! | 4 Get | client | chunk numbers, u32 each |
//! | 16 Staged | server | 40-byte chunk record, then the frame: a chunk of a layer that is still being read |
//! | 17 Index | server | a part of the sealed index |
//! | 18 IndexEnd | server | empty: the index is whole |
//! | 19 Failed | server | UTF-8 sentence; `number` is a [`FailureCode`] |
//! | 20 Frame | server | the frame of chunk `number` |
//! | 21 Missing | server | empty: chunk `number` is not here |
//! | 22 Holding | server | the bits of all chunks that are here; empty when the layer is unknown |
//! | 23 Have | server | chunk numbers that came since, u32 each |
//!
//! Within a connection a server sends demand before prefetch before background.

mod client;
mod codec;
mod lanes;
mod server;

pub use client::{Client, ClientError, Event, OpenStream, Opened};
pub use codec::{FailureCode, Lane, MAX_PAYLOAD_BYTES, WireError};
pub use server::{Holding, Opening, Provider, Region, ServerLimits, serve};
