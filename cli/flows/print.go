package flows

import (
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/internal/flow"
)

// list prints what is kept, whole.
func (g *gatherer) list(records []flow.Record) error {
	if records == nil {
		records = []flow.Record{}
	}
	if done, err := g.env.Structured(map[string]any{"apiVersion": run.OutputVersion, "kind": "FlowList", "items": records}); done {
		return err
	}
	return g.print(records)
}

// print prints records one by one: lines for people, a JSON object a line, or a
// YAML document each.
func (g *gatherer) print(records []flow.Record) error {
	for i := range records {
		var data []byte
		var err error
		switch g.env.Format {
		case "json":
			data, err = json.Marshal(&records[i])
		case "yaml":
			if data, err = yaml.Marshal(&records[i]); err == nil {
				data = append([]byte("---\n"), data[:max(len(data)-1, 0)]...)
			}
		default:
			data = []byte(g.line(&records[i]))
		}
		if err != nil {
			return fmt.Errorf("print a flow: %w", err)
		}
		if _, err := g.env.Out.Write(append(data, '\n')); err != nil {
			return err
		}
	}
	return nil
}

// line is a record for people, such as
//
//	02:31:05 DENY kernel yaobank/customer → yaobank/database:2379/TCP  by …
func (g *gatherer) line(r *flow.Record) string {
	var b strings.Builder
	at := r.Time.In(g.env.Time().Location())
	layout := "15:04:05"
	if g.env.Format == "wide" {
		layout = "2006-01-02T15:04:05.000Z07:00"
	}
	colour := run.Green
	if r.Verdict != flow.Allow {
		colour = run.Red
	}
	head := g.env.Paint(g.env.Out, run.Dim, at.Format(layout)) + " " + g.env.Paint(g.env.Out, colour, printable(strings.ToUpper(r.Verdict)))
	fmt.Fprintf(&b, " %s %s → %s", r.Layer, r.Source.String(), target(r))
	if q := r.Request; q != nil {
		fmt.Fprintf(&b, " %s %s", q.Method, q.Path)
	}
	fmt.Fprintf(&b, "  %s", r.Says())
	if r.Audit != nil {
		fmt.Fprintf(&b, "; audited: %s %s", strings.ToUpper(r.Audit.Verdict), r.Audit.Says())
	}
	if g.env.Format == "wide" {
		fmt.Fprintf(&b, "  [%s", strings.ToLower(r.Direction))
		for _, part := range []struct{ name, value string }{{"node", r.Node}, {"from", end(&r.Source)}, {"to", end(&r.Destination)}} {
			if part.value != "" {
				fmt.Fprintf(&b, " %s=%s", part.name, part.value)
			}
		}
		if r.Request != nil && r.Request.Host != "" {
			fmt.Fprintf(&b, " host=%s", r.Request.Host)
		}
		b.WriteString("]")
	}
	if r.Lost > 0 {
		fmt.Fprintf(&b, "  (%d before it not told)", r.Lost)
	}
	return head + printable(b.String())
}

// target is the destination with its port and protocol.
func target(r *flow.Record) string {
	name := r.Destination.String()
	switch {
	case r.Port != 0 && name == r.Destination.Address.String():
		name = net.JoinHostPort(name, strconv.Itoa(int(r.Port)))
	case r.Port != 0:
		name += ":" + strconv.Itoa(int(r.Port))
	case r.ICMPType != nil && r.ICMPCode != nil:
		return fmt.Sprintf("%s/%s type %d code %d", name, r.Protocol, *r.ICMPType, *r.ICMPCode)
	}
	if r.Protocol == "" {
		return name
	}
	return name + "/" + r.Protocol
}

// end is all that is known of an end, in one word.
func end(e *flow.Endpoint) string {
	var parts []string
	for _, p := range []string{e.Pod, e.Principal} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	if e.Address.IsValid() {
		parts = append(parts, e.Address.String())
	}
	return strings.Join(parts, ",")
}

// printable keeps what clients wrote from speaking to the terminal.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c >= 0x80 && c < 0xa0 {
			return '?'
		}
		return c
	}, s)
}
