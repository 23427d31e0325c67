//! As much HTTP as the example service needs.

use crate::{Failed, fail};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// A connection that stays open.
pub struct Client(BufReader<TcpStream>);

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// If nobody listens there.
    pub fn open(address: &str) -> Result<Self, Failed> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a request with a JSON body; `line` is the request line without the version, `header` one more header or nothing.
    /// Returns status and body.
    ///
    /// # Errors
    /// If the connection ends or the answer is not HTTP.
    pub fn request(&mut self, line: &str, header: &str, body: &str) -> Result<(u16, String), Failed> {
        let length = body.len();
        let end = if header.is_empty() { "" } else { "\r\n" };
        let text = format!(
            "{line} HTTP/1.1\r\nhost: localhost\r\n{header}{end}content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        self.0.get_mut().write_all(text.as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let status = line.split(' ').nth(1).ok_or("no status")?.parse()?;
        let mut length = 0;
        loop {
            line.clear();
            if self.0.read_line(&mut line)? == 0 {
                return fail("the server closed the connection");
            }
            match line.trim().to_ascii_lowercase().strip_prefix("content-length:") {
                Some(value) => length = value.trim().parse()?,
                None if line.trim().is_empty() => break,
                None => {}
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok((status, String::from_utf8(body)?))
    }
}
