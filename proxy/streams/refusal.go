package streams

import (
	"strconv"

	"github.com/hauberk-mesh/hauberk/proxy/exchange"
	"github.com/hauberk-mesh/hauberk/proxy/http2"
)

// writeRefusal sends a whole response of the proxy's own: trailers alone to
// gRPC, text to the others.
func writeRefusal(s *http2.Stream, request *http2.Head, r *exchange.Refusal) {
	w, ok := s.Begin()
	if !ok {
		return
	}
	if request.GRPC {
		w.Field(":status", "200")
		w.Field("content-type", "application/grpc")
		w.Field("grpc-status", strconv.Itoa(grpcCode(r.Status)))
		w.Field("grpc-message", grpcMessage(r.Text))
		own(w, r)
		w.End(true)
		s.Finish()
		return
	}
	head := request.Method == "HEAD"
	w.Field(":status", strconv.Itoa(r.Status))
	w.Field("content-type", "text/plain; charset=utf-8")
	w.Field("server", "hauberk")
	w.Field("content-length", strconv.Itoa(len(r.Text)+1))
	own(w, r)
	w.End(head)
	if !head {
		s.Write([]byte(r.Text+"\n"), true)
	}
	s.Finish()
}

func own(w http2.Writer, r *exchange.Refusal) {
	if r.FieldName != "" {
		w.Field(lower(r.FieldName), r.FieldValue)
	}
}

func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c | 0x20
		}
	}
	return string(b)
}

// grpcCode is the gRPC status for an HTTP status, as gRPC's own clients map
// them (grpc/doc/http-grpc-status-mapping.md).
func grpcCode(status int) int {
	switch status {
	case 400:
		return 13 // INTERNAL
	case 401:
		return 16 // UNAUTHENTICATED
	case 403:
		return 7 // PERMISSION_DENIED
	case 404:
		return 12 // UNIMPLEMENTED
	case 429, 502, 503, 504:
		return 14 // UNAVAILABLE
	}
	return 2 // UNKNOWN
}

// grpcMessage encodes what a grpc-message may not have as it is
// (grpc/doc/PROTOCOL-HTTP2.md).
func grpcMessage(s string) string {
	const digits = "0123456789ABCDEF"
	b := make([]byte, 0, len(s))
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '%' {
			b = append(b, '%', digits[c>>4], digits[c&15])
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}
