// A Node.js back end: it writes each request that it saw as a JSON line and
// answers 200. What it refuses by itself is told as refused.
'use strict';
const http = require('http');
const fs = require('fs');

const tell = (o) => fs.writeSync(1, JSON.stringify(o) + '\n');

const server = http.createServer((req, res) => {
  const parts = [];
  req.on('data', (p) => parts.push(p));
  req.on('end', () => {
    tell({ method: req.method, target: req.url, host: req.headers.host || '', body: Buffer.concat(parts).toString('base64') });
    if (req.url.startsWith('/ok/empty')) {
      res.writeHead(204);
      res.end();
      return;
    }
    if (req.url.startsWith('/ok/chunks')) {
      res.write('one,');
      res.end('two');
      return;
    }
    const answer = `seen ${req.method} ${req.url}\n`;
    res.writeHead(200, { 'Content-Type': 'text/plain', 'Content-Length': Buffer.byteLength(answer) });
    res.end(answer);
  });
});
server.on('clientError', (err, socket) => {
  if (err.code === 'ECONNRESET' || err.code === 'HPE_INVALID_EOF_STATE' || !socket.writable) {
    socket.destroy();
    return;
  }
  tell({ refused: err.code });
  socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n');
});
server.on('upgrade', (req, socket, head) => {
  tell({ method: req.method, target: req.url, host: req.headers.host || '', upgrade: req.headers.upgrade, body: '' });
  socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ' + req.headers.upgrade + '\r\n\r\n');
  if (head.length) socket.write(head);
  socket.pipe(socket);
  socket.on('error', () => socket.destroy());
});
server.on('connect', (req, socket, head) => {
  tell({ method: req.method, target: req.url, host: req.headers.host || '', body: '' });
  socket.write('HTTP/1.1 200 Connected\r\n\r\n');
  if (head.length) socket.write(head);
  socket.pipe(socket);
  socket.on('error', () => socket.destroy());
});
server.keepAliveTimeout = 60000;
server.listen(Number(process.argv[2]), '127.0.0.1');
