package http2

import (
	"encoding/binary"
	"fmt"
)

// Preface begins every connection of a client (RFC 9113 section 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// frameType is a frame's type.
type frameType uint8

const (
	typeData frameType = iota
	typeHeaders
	typePriority
	typeReset
	typeSettings
	typePush
	typePing
	typeGoAway
	typeWindow
	typeContinuation
)

const (
	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

const (
	settingTableSize  = 1
	settingPush       = 2
	settingStreams    = 3
	settingWindow     = 4
	settingFrameSize  = 5
	settingHeaderList = 6
)

const frameHeader = 9

// Code is an error code of RFC 9113 section 7.
type Code uint32

// The codes.
const (
	NoError Code = iota
	ProtocolError
	InternalError
	FlowControlError
	SettingsTimeout
	StreamClosed
	FrameSizeError
	RefusedStream
	Cancel
	CompressionError
	ConnectError
	EnhanceYourCalm
	InadequateSecurity
	HTTP11Required
)

var codeNames = [...]string{"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
	"FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
	"INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"}

// String is the code's name in the RFC.
func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code %d", uint32(c))
}

// ConnError is a connection that is at fault and ends, Local when it was found
// here and not told by the peer.
type ConnError struct {
	Code   Code
	Reason string
	Local  bool
}

// Error is what was wrong.
func (e *ConnError) Error() string {
	if e.Local {
		return "http/2: " + e.Reason + " (" + e.Code.String() + ")"
	}
	return "http/2: the peer ended the connection with " + e.Code.String() + ": " + e.Reason
}

func fault(code Code, reason string) *ConnError {
	return &ConnError{Code: code, Reason: reason, Local: true}
}

// header is a frame's header.
type header struct {
	length int
	kind   frameType
	flags  byte
	stream uint32
}

func parseHeader(b []byte) header {
	return header{length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]), kind: frameType(b[3]), flags: b[4],
		stream: binary.BigEndian.Uint32(b[5:]) & maxStreamID}
}

func (h *header) has(flag byte) bool { return h.flags&flag != 0 }

func appendHeader(b []byte, length int, kind frameType, flags byte, stream uint32) []byte {
	return append(b, byte(length>>16), byte(length>>8), byte(length), byte(kind), flags,
		byte(stream>>24), byte(stream>>16), byte(stream>>8), byte(stream))
}

func appendReset(b []byte, stream uint32, code Code) []byte {
	return binary.BigEndian.AppendUint32(appendHeader(b, 4, typeReset, 0, stream), uint32(code))
}

func appendWindow(b []byte, stream uint32, n int) []byte {
	return binary.BigEndian.AppendUint32(appendHeader(b, 4, typeWindow, 0, stream), uint32(n))
}

func appendGoAway(b []byte, last uint32, code Code, reason string) []byte {
	b = appendHeader(b, 8+len(reason), typeGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, reason...)
}

type setting struct {
	id    uint16
	value uint32
}

func appendSettings(b []byte, settings ...setting) []byte {
	b = appendHeader(b, 6*len(settings), typeSettings, 0, 0)
	for _, s := range settings {
		b = binary.BigEndian.AppendUint16(b, s.id)
		b = binary.BigEndian.AppendUint32(b, s.value)
	}
	return b
}

// unpad takes the padding off a payload; n is how much that was, its length
// field included.
func unpad(h *header, p []byte) (rest []byte, n int, err error) {
	if !h.has(flagPadded) {
		return p, 0, nil
	}
	if len(p) == 0 || int(p[0]) >= len(p) {
		return nil, 0, fault(ProtocolError, "padding is longer than its frame")
	}
	n = int(p[0]) + 1
	return p[1 : len(p)-int(p[0])], n, nil
}

// budget is what a peer may spend; it fills up again with time.
type budget struct {
	tokens, size, rate int
	last               int64 // Unix nanoseconds
}

func newBudget(size, rate int) budget { return budget{tokens: size, size: size, rate: rate} }

// spend takes one; false means that there is none. The clock is read only when
// the budget looks empty.
func (b *budget) spend(now func() int64) bool {
	if b.tokens == 0 {
		t := now()
		if b.last == 0 {
			b.last = t - 1e9 // it took at least until now to spend the first
		}
		b.earn(int(min(t-b.last, 60e9) * int64(b.rate) / 1e9))
		if b.tokens > 0 {
			b.last = t
		}
	}
	if b.tokens == 0 {
		return false
	}
	b.tokens--
	return true
}

func (b *budget) earn(n int) { b.tokens = min(b.tokens+n, b.size) }
