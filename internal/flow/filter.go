package flow

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Filter says which records are wanted. Its fields are ANDed; empty ones do not
// matter. The zero Filter wants all.
type Filter struct {
	// Namespaces, Pod and Workload hold for either end of the flow: what is named
	// must be of one and the same end.
	Namespaces []string
	Pod        string // the name, or its beginning up to a hyphen
	Workload   string
	Verdict    string
	Layer      string
	// Policy is the name of a policy that decided, or whose silence did: whole as
	// "Kind namespace/name", or namespace/name, or name.
	Policy string
	Port   uint16
	// Since leaves out what is not after it.
	Since time.Time
}

// Match reports whether r is wanted.
func (f *Filter) Match(r *Record) bool {
	switch {
	case f.Verdict != "" && r.Verdict != f.Verdict && (r.Audit == nil || r.Audit.Verdict != f.Verdict),
		f.Layer != "" && r.Layer != f.Layer,
		f.Port != 0 && r.Port != f.Port,
		!f.Since.IsZero() && !r.Time.After(f.Since):
		return false
	}
	if len(f.Namespaces) > 0 || f.Pod != "" || f.Workload != "" {
		if !f.end(&r.Source) && !f.end(&r.Destination) {
			return false
		}
	}
	return f.Policy == "" || f.policy(&r.Decision) || r.Audit != nil && f.policy(&r.Audit.Decision)
}

func (f *Filter) end(e *Endpoint) bool {
	return (len(f.Namespaces) == 0 || slices.Contains(f.Namespaces, e.Namespace)) &&
		(f.Pod == "" || e.Pod == f.Pod || strings.HasPrefix(e.Pod, f.Pod+"-")) &&
		(f.Workload == "" || e.Workload == f.Workload)
}

func (f *Filter) policy(d *Decision) bool {
	return named(d.Policy, f.Policy) || slices.ContainsFunc(d.Selecting, func(ref string) bool { return named(ref, f.Policy) })
}

func named(ref, want string) bool {
	return ref != "" && (ref == want || strings.HasSuffix(ref, " "+want) || strings.HasSuffix(ref, "/"+want))
}

// ParseVerdict reads a verdict in any case; "all" is none in particular.
func ParseVerdict(text string) (string, error) {
	switch strings.ToLower(text) {
	case "", "all":
		return "", nil
	case "allow":
		return Allow, nil
	case "deny":
		return Deny, nil
	}
	return "", fmt.Errorf("verdict %q: it must be allow, deny or all", text)
}

// ParseLayer reads a layer; empty and "all" are none in particular.
func ParseLayer(text string) (string, error) {
	switch l := strings.ToLower(text); l {
	case Kernel, Sidecar:
		return l, nil
	case "", "all":
		return "", nil
	}
	return "", fmt.Errorf("layer %q: it must be kernel, sidecar or all", text)
}

// ParseSince reads a moment: a time (RFC 3339) or how long before now.
func ParseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return t, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return time.Time{}, fmt.Errorf("since %q: it must be a duration such as 10m, or a time such as 2026-01-02T15:04:05Z", text)
	}
	return now.Add(-d), nil
}

// ParseFilter reads what Query wrote, and what a person typed into a URL.
func ParseFilter(q url.Values, now time.Time) (Filter, error) {
	f := Filter{Namespaces: q["namespace"], Pod: q.Get("pod"), Workload: q.Get("workload"), Policy: q.Get("policy")}
	var err error
	if f.Verdict, err = ParseVerdict(q.Get("verdict")); err != nil {
		return f, err
	}
	if f.Layer, err = ParseLayer(q.Get("layer")); err != nil {
		return f, err
	}
	if f.Since, err = ParseSince(q.Get("since"), now); err != nil {
		return f, err
	}
	if text := q.Get("port"); text != "" {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || port == 0 {
			return f, fmt.Errorf("port %q: it must be a number from 1 to 65535", text)
		}
		f.Port = uint16(port)
	}
	return f, nil
}

// Query is the filter as ParseFilter reads it.
func (f *Filter) Query() url.Values {
	q := url.Values{}
	set := func(key, value string) {
		if value != "" {
			q.Set(key, value)
		}
	}
	for _, ns := range f.Namespaces {
		q.Add("namespace", ns)
	}
	set("pod", f.Pod)
	set("workload", f.Workload)
	set("verdict", f.Verdict)
	set("layer", f.Layer)
	set("policy", f.Policy)
	if f.Port != 0 {
		set("port", strconv.Itoa(int(f.Port)))
	}
	if !f.Since.IsZero() {
		set("since", f.Since.UTC().Format(time.RFC3339Nano))
	}
	return q
}
