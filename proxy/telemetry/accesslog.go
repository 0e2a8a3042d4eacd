package telemetry

import (
	"io"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/hauberk-mesh/hauberk/proxy/authz"
)

// accessLog writes JSON lines. They are put together by hand because a line is
// written for each request.
type accessLog struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte // guarded by mu
}

func (l *accessLog) write(rec *Record, t *Trace) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := append(l.buf[:0], `{"time":"`...)
	b = rec.Start.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","log":"access"`...)
	b = field(b, "direction", rec.Direction)
	b = field(b, "protocol", rec.Protocol)
	b = field(b, "method", rec.Method)
	b = field(b, "path", rec.Path)
	b = field(b, "host", rec.Host)
	if rec.Status != 0 {
		b = number(b, "status", int64(rec.Status))
	}
	if rec.GRPC && rec.GRPCStatus >= 0 {
		b = number(b, "grpc_status", int64(rec.GRPCStatus))
	}
	b = number(b, "received_bytes", rec.Received)
	b = number(b, "sent_bytes", rec.Sent)
	b = append(b, `,"duration_ms":`...)
	b = strconv.AppendFloat(b, float64(rec.Duration.Microseconds())/1000, 'f', -1, 64)
	b = field(b, "flag", rec.Flag)
	b = field(b, "error", rec.Error)
	if rec.Attempts > 1 {
		b = number(b, "attempts", int64(rec.Attempts))
	}
	b = field(b, "source_principal", rec.Source.Principal)
	b = field(b, "source_workload", name(rec.Source))
	b = field(b, "destination_principal", rec.Destination.Principal)
	b = field(b, "destination_workload", name(rec.Destination))
	b = field(b, "destination_service", rec.Service)
	b = field(b, "peer_address", rec.PeerAddress)
	b = field(b, "target_address", rec.TargetAddress)
	if rec.Decided {
		b = field(b, "verdict", rec.Verdict.Action.String())
		b = field(b, "tier", rec.Verdict.Tier)
		b = field(b, "policy", authz.Name(&rec.Verdict))
		b = field(b, "rule", rec.Verdict.Rule)
		if a := rec.Verdict.Audit; a != nil {
			b = field(b, "audit_verdict", a.Action.String())
			b = field(b, "audit_policy", authz.Name(a))
		}
	}
	b = field(b, "trace_id", t.id())
	b = append(b, '}', '\n')
	// An access log that can't be written is lost; requests go on.
	_, _ = l.w.Write(b)
	l.buf = b[:0]
	if cap(l.buf) > 16<<10 {
		l.buf = nil
	}
}

func number(b []byte, key string, v int64) []byte {
	b = append(append(append(b, `,"`...), key...), `":`...)
	return strconv.AppendInt(b, v, 10)
}

func field(b []byte, key, value string) []byte {
	if value == "" {
		return b
	}
	b = append(append(append(b, `,"`...), key...), `":"`...)
	b = quote(b, value)
	return append(b, '"')
}

// maxField keeps a line bounded.
const maxField = 2048

func quote(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	if len(s) > maxField {
		s = s[:maxField]
	}
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
			i++
		case c < ' ' || c == 0x7f:
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
			i++
		case c < utf8.RuneSelf:
			b = append(b, c)
			i++
		default:
			r, size := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && size == 1 {
				b = append(b, `\ufffd`...)
			} else {
				b = append(b, s[i:i+size]...)
			}
			i += size
		}
	}
	return b
}
