package exchange

import (
	"net/http"

	"github.com/hauberk-mesh/hauberk/proxy/http1"
)

// writeRequest appends the request's head in the form that was authorised.
func (s *server) writeRequest(w *http1.Writer, x *Exchange) {
	r, t := &x.Request, &x.Target
	w.Write(r.Method)
	w.WriteString(" ")
	switch {
	case r.IsMethod("CONNECT"):
		w.WriteString(t.Authority)
	case t.Absolute:
		w.WriteString("http://")
		w.WriteString(t.Authority)
		w.WriteString(t.Path)
	default:
		w.WriteString(t.Path)
	}
	w.WriteString(t.Query)
	w.WriteString(" HTTP/1.1\r\nHost: ")
	w.WriteString(t.Authority)
	w.WriteString("\r\n")
	for i := range r.Fields {
		f := &r.Fields[i]
		switch f.Kind {
		case http1.Other, http1.ForwardedFor, http1.Forwarded, http1.Tracestate, http1.B3:
			w.WriteRaw(f)
		case http1.Expect:
			if r.Continue {
				w.WriteRaw(f)
			}
		case http1.Trailer:
			if r.Framing == http1.Chunked {
				w.WriteRaw(f)
			}
		}
	}
	switch {
	case r.Framing == http1.Chunked:
		w.WriteString("Transfer-Encoding: chunked\r\n")
	case r.Length >= 0:
		writeLength(w, r.Length)
	}
	switch {
	case r.Protocol != nil:
		w.WriteString("Connection: upgrade\r\nUpgrade: ")
		w.Write(r.Protocol)
		w.WriteString("\r\n")
	case r.AcceptsTrailers:
		w.WriteString("Connection: te\r\nTE: trailers\r\n")
	}
	s.handler.RequestFields(x, w)
	w.WriteString("\r\n")
}

func writeLength(w *http1.Writer, n int64) {
	w.WriteString("Content-Length: ")
	w.WriteInt(n)
	w.WriteString("\r\n")
}

func writeStatus(w *http1.Writer, status int, reason []byte) {
	w.WriteString("HTTP/1.1 ")
	w.WriteInt(int64(status))
	w.WriteString(" ")
	w.Write(reason)
	w.WriteString("\r\n")
}

// writeResponse appends the response's head, an interim one included. chunked
// says how the body will be sent when it has no length.
func (s *server) writeResponse(w *http1.Writer, x *Exchange, chunked, closing bool) {
	r := &x.Response
	writeStatus(w, r.Status, r.Reason)
	for i := range r.Fields {
		f := &r.Fields[i]
		switch f.Kind {
		case http1.Other, http1.Host, http1.Expect, http1.ForwardedFor, http1.Forwarded, http1.Traceparent, http1.Tracestate, http1.B3:
			w.WriteRaw(f)
		case http1.Identity:
			if s.options.KeepVerdict {
				w.WriteRaw(f)
			}
		case http1.Trailer:
			if chunked {
				w.WriteRaw(f)
			}
		case http1.Upgrade:
			if r.Status == http.StatusUpgradeRequired {
				w.WriteString("Connection: upgrade\r\n")
				w.WriteRaw(f)
			}
		}
	}
	switch r.Framing {
	case http1.Tunnelled:
		if r.Status == http.StatusSwitchingProtocols {
			w.WriteString("Connection: upgrade\r\nUpgrade: ")
			w.Write(r.Protocol)
			w.WriteString("\r\n")
		}
	case http1.NoBody:
		if r.Status >= 200 && r.Status != http.StatusNoContent && r.Length >= 0 {
			writeLength(w, r.Length)
		}
	case http1.ByLength:
		writeLength(w, r.Length)
	default:
		if chunked {
			w.WriteString("Transfer-Encoding: chunked\r\n")
		}
	}
	if closing {
		w.WriteString("Connection: close\r\n")
	}
	w.WriteString("\r\n")
}

// writeTrailers ends a chunked body with those trailer fields that may stand
// there.
func writeTrailers(w *http1.Writer, fields []http1.Field) {
	w.WriteString("0\r\n")
	for i := range fields {
		if !fields[i].Kind.ForbiddenInTrailer() {
			w.WriteRaw(&fields[i])
		}
	}
	w.WriteString("\r\n")
}

// writeRefusal appends a whole response of the proxy's own.
func writeRefusal(w *http1.Writer, r *Refusal, head, closing bool) {
	w.WriteString("HTTP/1.1 ")
	w.WriteInt(int64(r.Status))
	w.WriteString(" ")
	w.WriteString(http.StatusText(r.Status))
	w.WriteString("\r\nContent-Type: text/plain; charset=utf-8\r\nServer: hauberk\r\n")
	writeLength(w, int64(len(r.Text)+1))
	if r.FieldName != "" {
		w.WriteField(r.FieldName, r.FieldValue)
	}
	if closing {
		w.WriteString("Connection: close\r\n")
	}
	w.WriteString("\r\n")
	if !head {
		w.WriteString(r.Text)
		w.WriteString("\n")
	}
}
