//! The protocol written by hand, as the documentation of the crate has it.

use std::net::SocketAddr;

use d7y_types::PackId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::fake::within;

pub const HELLO: u8 = 1;
pub const OPEN: u8 = 2;
pub const BIND: u8 = 3;
pub const GET: u8 = 4;
pub const GET_FOR: u8 = 5;
pub const FRAME: u8 = 20;
pub const MISSING: u8 = 21;
pub const HOLDING: u8 = 22;

/// What a small receive buffer and everything that the kernel makes of it may swallow.
pub const RECEIVE_BUFFER_BYTES: u32 = 32 << 10;

#[derive(Debug)]
pub struct Answer {
    pub kind: u8,
    pub number: u32,
    pub payload: Vec<u8>,
}

pub fn header(kind: u8, lane: u8, words: [u32; 3]) -> Vec<u8> {
    let mut out = vec![kind, lane, 0, 0];
    out.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    out
}

pub fn message(kind: u8, lane: u8, [stream, number]: [u32; 2], payload: &[u8]) -> Vec<u8> {
    [&header(kind, lane, [stream, number, payload.len() as u32]), payload].concat()
}

pub fn hello() -> Vec<u8> {
    message(HELLO, 0, [0, 1], b"raw")
}

pub fn get(lane: u8, chunks: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let numbers: Vec<u8> = chunks.into_iter().flat_map(u32::to_le_bytes).collect();
    message(GET, lane, [0, 0], &numbers)
}

pub fn pack(id: PackId) -> Vec<u8> {
    [id.layer.0, id.table.0].concat()
}

/// A connection with a small receive buffer, so that what waits waits at the server.
pub async fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES).unwrap();
    socket.connect(address).await.unwrap()
}

/// A connection that has exchanged hellos.
pub async fn greeted(address: SocketAddr) -> TcpStream {
    let mut socket = connect(address).await;
    socket.write_all(&hello()).await.unwrap();
    let answer = read(&mut socket).await;
    assert_eq!((answer.kind, answer.number, &answer.payload[..]), (HELLO, 1, &b"seed-1"[..]));
    socket
}

pub async fn read(socket: &mut TcpStream) -> Answer {
    let mut head = [0; 16];
    within(socket.read_exact(&mut head)).await.unwrap();
    let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
    let mut payload = vec![0; word(12) as usize];
    within(socket.read_exact(&mut payload)).await.unwrap();
    Answer { kind: head[0], number: word(8), payload }
}

/// Reads until the other side has closed or reset the connection; returns how many bytes came.
pub async fn drain(socket: &mut TcpStream) -> usize {
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        match within(socket.read(&mut buffer)).await {
            Ok(0) | Err(_) => return total,
            Ok(n) => total += n,
        }
    }
}
