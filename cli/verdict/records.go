package verdict

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/control/compile"
	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/policy"
)

// readRecords reads what `hauberk flows -o json` printed, followed (a record a
// line) or not (a list).
func readRecords(env *run.Env, files []string) ([]flow.Record, error) {
	var records []flow.Record
	for _, name := range files {
		data, err := readFile(env, name)
		if err != nil {
			return nil, err
		}
		decoder := json.NewDecoder(bytes.NewReader(data))
		for {
			var value struct {
				Items []flow.Record `json:"items"`
				flow.Record
			}
			if err := decoder.Decode(&value); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, run.Fail(run.ExitBadInput, "record flows with `hauberk flows -o json`", "read flows of %s: %w", name, err)
			}
			if value.Items == nil && value.Verdict != "" {
				value.Items = []flow.Record{value.Record}
			}
			records = append(records, value.Items...)
		}
	}
	return records, nil
}

// recorded is one flow that was seen, as a question, and how often.
type recorded struct {
	question
	record flow.Record
	times  int
}

// questions makes questions of records, one of those that are alike; unknown
// says of which ends nobody knows any more.
func (w *world) questions(records []flow.Record) (list []*recorded, unknown []string) {
	known := map[string]*recorded{}
	for i := range records {
		r := &records[i]
		q, err := w.questionOf(r)
		if err != nil {
			if !slices.Contains(unknown, err.Error()) {
				unknown = append(unknown, err.Error())
			}
			continue
		}
		key := fmt.Sprint(q.from.String(), "\x00", q.to.String(), "\x00", q.protocol, q.port, q.icmpType, q.icmpCode, q.noMTLS, "\x00", r.Verdict)
		if r.Request != nil {
			key += fmt.Sprint("\x00", r.Request.Method, "\x00", r.Request.Path, "\x00", r.Request.Host)
		}
		if known[key] == nil {
			known[key] = &recorded{question: *q, record: *r}
			list = append(list, known[key])
		}
		known[key].times++
	}
	return list, unknown
}

func (w *world) questionOf(r *flow.Record) (*question, error) {
	protocol, err := parseProtocol(cmp.Or(r.Protocol, "tcp"))
	if err != nil {
		return nil, fmt.Errorf("protocol %q is none that policies know", r.Protocol)
	}
	q := &question{protocol: protocol, port: r.Port}
	if r.ICMPType != nil {
		q.icmpType = *r.ICMPType
	}
	if r.ICMPCode != nil {
		q.icmpCode = *r.ICMPCode
	}
	if q.from, err = w.endOf(&r.Source); err != nil {
		return nil, err
	}
	if q.to, err = w.endOf(&r.Destination); err != nil {
		return nil, err
	}
	if r.Request != nil {
		q.http = &policy.HTTPRequest{Method: r.Request.Method, Path: r.Request.Path, Host: r.Request.Host}
	}
	// A sidecar knows whether the peer proved an identity; the kernel does not.
	q.noMTLS = r.Layer == flow.Sidecar && r.Source.Principal == "" && r.Direction == policy.Ingress.String()
	sameFamily(q)
	return q, nil
}

// endOf finds an end by its pod, else its workload, else its node or address.
func (w *world) endOf(e *flow.Endpoint) (*end, error) {
	if e.Pod != "" {
		if pods := w.match(e.Namespace, func(p *compile.Pod) bool { return p.Name == e.Pod }); len(pods) > 0 {
			return w.podEnd(e.Pod, pods[:1]), nil
		}
	}
	if e.Workload != "" {
		if pods := w.find(name{"", e.Namespace, e.Workload}); len(pods) > 0 {
			return w.podEnd(e.Workload, pods[:1]), nil
		}
	}
	if e.Pod != "" || e.Workload != "" {
		return nil, fmt.Errorf("no running pod belongs to %s", e)
	}
	if e.Node != "" {
		return w.resolve("node/"+e.Node, "", "", policy.TCP, true)
	}
	if !e.Address.IsValid() {
		return nil, errors.New("an end has neither name nor address")
	}
	return w.address(e.Address.String(), e.Address.Unmap())
}
