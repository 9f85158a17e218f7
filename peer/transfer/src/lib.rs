//! The piece protocol between peers: framed, over TCP.
//!
//! A connection either *opens* one layer (chunks as they are made, then the sealed index) or *fetches* chunks of
//! several layers. Either way the client speaks first: its Hello, then the server's, then requests. A server answers
//! a Hello of another version with its own and closes. Whoever sends anything that this page does not allow is cut off.
//!
//! Every frame has a header of 16 bytes, integers little-endian:
//!
//! | Offset | Size | Field |
//! |---|---|---|
//! | 0 | 1 | kind |
//! | 1 | 1 | lane: 0 demand, 1 prefetch, 2 background |
//! | 2 | 2 | reserved: 0, and whoever receives it does not look |
//! | 4 | 4 | stream: the client's number for a layer on this connection |
//! | 8 | 4 | number: a chunk, or what the kind says |
//! | 12 | 4 | payload bytes, at most [`MAX_PAYLOAD_BYTES`]; in Hellos and from a client [`MAX_REQUEST_BYTES`] |
//!
//! | Kind | From | Payload |
//! |---|---|---|
//! | 1 Hello | both | UTF-8 peer id; `number` is the protocol version, 1; `stream` says what else the sender understands: bit 0, GetFor; bit 1, Following |
//! | 2 Open | client | [`d7y_types::LayerRef`] as JSON; the only request on its connection; `number` is the [`Purpose`] |
//! | 3 Bind | client | [`d7y_types::PackId`], layer digest and table hash of 32 bytes each: what `stream` stands for from now on; answered by Holding; at most 4096 streams |
//! | 4 Get | client | chunk numbers, u32 each |
//! | 5 GetFor | client | id of a request and the client's span in its trace (0: none), u64 each, then as Get; only to a server that understands it |
//! | 16 Staged | server | 40-byte chunk record, then the frame: a chunk of a layer that is still being read |
//! | 17 Index | server | a part of the sealed index |
//! | 18 IndexEnd | server | empty: the index is whole |
//! | 19 Failed | server | UTF-8 sentence; `number` is a [`FailureCode`] |
//! | 20 Frame | server | the frame of chunk `number` |
//! | 21 Missing | server | empty: chunk `number` is not here |
//! | 22 Holding | server | a part of the bits of all chunks that are here; `number` is its first byte; an empty part is the last |
//! | 23 Have | server | chunk numbers that came since, u32 each |
//! | 24 Working | server | empty: whoever reads the opened layer from its origin is still at it |
//! | 25 Following | server | JSON array of peer ids: of whom the server receives the opened layer itself, of whom that peer does, and so on; replaces what it said before; only to a client that understands it |
//!
//! A Holding without bits says that the layer is unknown, or known with another chunk table; the client may bind the same stream again. A later Holding
//! replaces the first: the server sends one when it has more news than the connection takes.
//!
//! Within a connection a server sends demand before prefetch before background. A demand waits for what is in the
//! socket's send buffer and for one batch of about 256 KiB that is being written. Staged chunks go in the background
//! lane and the index in the demand lane, so the index overtakes what is still queued; chunks that come after it are
//! of no use to an opener. Chunk numbers are answered once each time that they are asked for, in the order asked
//! within a lane.
//!
//! Memory: a server holds at most 1 MiB of answers and one batch of frames per connection, and stops reading requests
//! when more would come; a client that takes no byte for [`ServerLimits::stall`] is cut off. A client accepts only
//! chunks that it asked for.
//!
//! A server that stops ([`Stop`]) accepts no connection, goes on with those that it has until all that was asked for before
//! has been handed to them, and then closes them between two frames. What a client has asked for and not received by then
//! it asks another parent for.

mod answers;
mod client;
mod codec;
mod connection;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod lanes;
mod request;
mod server;
mod serving;

pub use answers::{Event, Opened};
pub use client::{Client, ClientError, Connection, OpenStream};
pub use codec::{FailureCode, Lane, MAX_PAYLOAD_BYTES, MAX_REQUEST_BYTES, Purpose, WireError};
pub use server::{Asker, Holding, Opening, Provider, Region, ServerLimits, Stop, UnderWay, serve};
pub use serving::Served;
