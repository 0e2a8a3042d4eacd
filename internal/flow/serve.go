package flow

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// ProblemHeader says why a source can't tell of all its verdicts.
const ProblemHeader = "Hauberk-Flows-Problem"

// contentType of a stream: one JSON object a line.
const contentType = "application/x-ndjson"

// Handler serves a ring as JSON lines: with follow=1 until the reader goes, else
// what is kept. The other parameters are those of Filter. problem says why
// verdicts are missing, empty when none are; nil means never.
func Handler(r *Ring, problem func() string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		q := req.URL.Query()
		f, err := ParseFilter(q, time.Now())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if problem != nil {
			if p := problem(); p != "" {
				w.Header().Set(ProblemHeader, p)
			}
		}
		w.Header().Set("Content-Type", contentType)
		follow := q.Get("follow")
		if follow == "" || follow == "0" || follow == "false" {
			writeAll(w, r.Recent(f))
			return
		}
		kept, s := r.Subscribe(f)
		defer s.Close()
		stream(w, req, kept, s)
	})
}

func writeAll(w io.Writer, records []Record) {
	b := bufio.NewWriter(w)
	e := json.NewEncoder(b)
	for i := range records {
		if e.Encode(&records[i]) != nil {
			return // the reader went away
		}
	}
	// The same: there is nobody to tell.
	_ = b.Flush()
}

func stream(w http.ResponseWriter, req *http.Request, kept []Record, s *Subscription) {
	c := http.NewResponseController(w)
	// The server's deadlines are for requests that end. Where they can't be lifted
	// the stream ends with them, and the reader comes again.
	_ = c.SetReadDeadline(time.Time{})
	_ = c.SetWriteDeadline(time.Time{})
	w.WriteHeader(http.StatusOK)
	writeAll(w, kept)
	for c.Flush() == nil {
		var batch []Record
		select {
		case rec, ok := <-s.Records():
			if !ok {
				return
			}
			batch = append(batch, rec)
		case <-req.Context().Done():
			return
		}
		for more := true; more && len(batch) < queue; {
			select {
			case rec, ok := <-s.Records():
				if more = ok; ok {
					batch = append(batch, rec)
				}
			default:
				more = false
			}
		}
		writeAll(w, batch)
	}
}

// maxLine bounds what one record may be long.
const maxLine = 1 << 20

// Read calls each for every record of a stream until it ends or each returns
// an error.
func Read(ctx context.Context, from io.Reader, each func(Record) error) error {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var rec Record
		if err := json.Unmarshal(lines.Bytes(), &rec); err != nil {
			return fmt.Errorf("read a flow: it is of another version of the mesh: %w", err)
		}
		if err := each(rec); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("read flows: %w", err)
	}
	return nil
}
