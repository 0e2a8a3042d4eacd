package main

import (
	"encoding/binary"
	"hash/crc32"
)

// Chunk types of RFC 9260, section 3.2.
const (
	initChunk = 1
	initAck   = 2
)

// sizes of the common header and of the fixed part of INIT.
const (
	headerSize = 12
	initSize   = 20
)

// packet is what matters of a packet whose first chunk is INIT or INIT ACK.
type packet struct {
	from, to     uint16
	verification uint32 // the tag that its receiver chose
	kind         byte
	tag          uint32 // the tag that its sender chose
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func initPacket(from, to uint16, tag uint32) []byte {
	return write(packet{from: from, to: to, kind: initChunk, tag: tag}, nil)
}

// ackPacket answers an INIT. Its state cookie is empty of meaning: nobody will
// send it back.
func ackPacket(p packet) []byte {
	cookie := []byte{0, 7, 0, 8, 'n', 'o', 'n', 'e'} // parameter 7 of 8 bytes
	return write(packet{from: p.to, to: p.from, verification: p.tag, kind: initAck, tag: p.tag ^ 0x5a5a5a5a | 1}, cookie)
}

func write(p packet, parameters []byte) []byte {
	b := make([]byte, headerSize+initSize, headerSize+initSize+len(parameters))
	binary.BigEndian.PutUint16(b[0:], p.from)
	binary.BigEndian.PutUint16(b[2:], p.to)
	binary.BigEndian.PutUint32(b[4:], p.verification)
	chunk := b[headerSize:]
	chunk[0] = p.kind
	binary.BigEndian.PutUint16(chunk[2:], uint16(initSize+len(parameters)))
	binary.BigEndian.PutUint32(chunk[4:], p.tag)
	binary.BigEndian.PutUint32(chunk[8:], 65536) // receiver window
	binary.BigEndian.PutUint16(chunk[12:], 1)    // outbound streams
	binary.BigEndian.PutUint16(chunk[14:], 1)    // inbound streams
	binary.BigEndian.PutUint32(chunk[16:], p.tag)
	b = append(b, parameters...)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
	return b
}

// read is false for what is not a whole INIT or INIT ACK.
func read(b []byte) (packet, bool) {
	if len(b) < headerSize+initSize {
		return packet{}, false
	}
	sum := binary.LittleEndian.Uint32(b[8:])
	zeroed := append([]byte{}, b...)
	clear(zeroed[8:12])
	chunk := b[headerSize:]
	if crc32.Checksum(zeroed, castagnoli) != sum || chunk[0] != initChunk && chunk[0] != initAck {
		return packet{}, false
	}
	return packet{
		from: binary.BigEndian.Uint16(b[0:]), to: binary.BigEndian.Uint16(b[2:]),
		verification: binary.BigEndian.Uint32(b[4:]), kind: chunk[0], tag: binary.BigEndian.Uint32(chunk[4:]),
	}, true
}
