//! The server of the benchmark: answers every request on port 80 with the same kilobyte, over connections that stay open.
//! Compiled statically by the benchmark itself, so that it runs in an image from scratch.

use std::io::{Read, Write};
use std::net::TcpListener;

fn main() {
    let body = "x".repeat(1024);
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let listener = TcpListener::bind("0.0.0.0:80").expect("port 80 is free in a container");
    for stream in listener.incoming().flatten() {
        let answer = answer.clone();
        std::thread::spawn(move || {
            let (mut stream, mut buffer) = (stream, [0; 4096]);
            let _ = stream.set_nodelay(true);
            let mut pending = 0;
            // A request ends with an empty line; none of the benchmark's has a body.
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                for byte in &buffer[..count] {
                    pending = match (pending, byte) {
                        (0 | 2, b'\r') | (1 | 3, b'\n') => pending + 1,
                        _ => 0,
                    };
                    if pending == 4 {
                        pending = 0;
                        if stream.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                }
            }
        });
    }
}
