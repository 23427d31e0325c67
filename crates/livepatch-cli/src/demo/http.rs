//! A minimal HTTP/1.1 client for one keep-alive connection: what the load generator needs and no more.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A request that takes longer than this counts as failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// One connection to the service.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

/// Status and body of a response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends `POST path` with a JSON body and reads the whole response.
    pub(crate) fn post(&mut self, path: &str, json: &str) -> Result<Response> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{json}",
            json.len()
        );
        self.exchange(&request)
    }

    /// Sends `GET path` and reads the whole response.
    pub(crate) fn get(&mut self, path: &str) -> Result<Response> {
        self.exchange(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"))
    }

    /// Sends `GET path`, reads the head of the response and hands over the connection for a body that never ends.
    pub(crate) fn stream(mut self, path: &str) -> Result<BufReader<TcpStream>> {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n"))?;
        let (status, _) = self.head()?;
        if status != 200 {
            return Err(Error::other(format!("GET {path} answered {status}")));
        }
        Ok(self.stream)
    }

    fn exchange(&mut self, request: &str) -> Result<Response> {
        self.send(request)?;
        let (status, length) = self.head()?;
        let length = length.ok_or_else(|| bad("a response without content-length"))?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Response { status, body })
    }

    fn send(&mut self, request: &str) -> Result<()> {
        self.stream.get_mut().write_all(request.as_bytes())
    }

    fn head(&mut self) -> Result<(u16, Option<usize>)> {
        let status = self.line()?;
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| bad("a status line without a code"))?;
        let mut length = None;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok((status, length));
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.trim().parse().map_err(|_| bad("a content-length that is no number"))?);
            }
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(Error::new(ErrorKind::UnexpectedEof, "the server closed the connection"));
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }
}

fn bad(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("the server sent {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn answer(text: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
        });
        address
    }

    #[test]
    fn reads_status_and_body() {
        let server = answer("HTTP/1.1 201 Created\r\nContent-Length: 3\r\n\r\nabc");
        let response = Connection::open(server).unwrap().get("/").unwrap();
        assert_eq!((response.status, response.body.as_slice()), (201, b"abc".as_slice()));
    }

    #[test]
    fn a_short_body_and_a_closed_connection_are_errors() {
        for text in
            ["HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", "", "HTTP/1.1 200 OK\r\n\r\n", "junk\r\n\r\n"]
        {
            assert!(Connection::open(answer(text)).unwrap().get("/").is_err(), "{text:?}");
        }
    }
}
