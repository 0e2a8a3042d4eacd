package istio

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/hauberk-mesh/hauberk/api/v1alpha1"
	"github.com/hauberk-mesh/hauberk/cli/convert/manifest"
)

// operation converts what is asked for.
func (c *converter) operation(at manifest.At, o *operation, out *clause) {
	ports(at.In("ports"), o.Ports, o.NotPorts, out)
	if len(o.Methods) > 0 {
		out.add(at, methods(at.In("methods"), o.Methods))
	}
	if len(o.NotMethods) > 0 {
		out.except(methods(at.In("notMethods"), o.NotMethods))
	}
	if len(o.Paths) > 0 {
		out.add(at, paths(at.In("paths"), o.Paths))
	}
	if len(o.NotPaths) > 0 {
		out.except(paths(at.In("notPaths"), o.NotPaths))
	}
	if len(o.Hosts) > 0 {
		out.add(at, c.hosts(at.In("hosts"), o.Hosts))
	}
	if len(o.NotHosts) > 0 {
		out.except(c.hosts(at.In("notHosts"), o.NotHosts))
	}
	for _, n := range out.not {
		out.yes.request = out.yes.request || n.request
	}
}

// add adds conditions.
func (c *clause) add(at manifest.At, more conditions) {
	sum, ok := both(c.yes, more)
	if !ok {
		at.Error("its conditions together can't be said: split the rule")
		return
	}
	c.yes = sum
}

func ports(at manifest.At, list, not []string, out *clause) {
	if len(list)+len(not) == 0 {
		return
	}
	read := func(at manifest.At, list []string) []manifest.Ports {
		var ports []manifest.Ports
		for i, text := range list {
			p, err := manifest.ParsePorts(text, "")
			if err != nil {
				at.In("[%d]", i).Error("%s", err)
				continue
			}
			ports = append(ports, p)
		}
		return ports
	}
	all := manifest.AllPorts()
	if len(list) > 0 {
		all = read(at, list)
	}
	out.add(at, conditions{ports: append([]manifest.Ports{}, manifest.LessPorts(all, read(negated(at), not))...)})
}

var method = regexp.MustCompile(`^[A-Z][A-Z-]{0,31}$`)

func methods(at manifest.At, list []string) conditions {
	out := conditions{request: true}
	for i, m := range list {
		if m == "*" {
			return conditions{request: true}
		}
		if !method.MatchString(m) {
			at.In("[%d]", i).Error("%q: methods are whole words in capitals, or \"*\" alone", m)
		}
		out.methods = append(out.methods, m)
	}
	return out
}

func paths(at manifest.At, list []string) conditions {
	out := conditions{request: true}
	for i, text := range list {
		if text == "*" {
			return conditions{request: true}
		}
		m, err := path(text)
		if err != nil {
			at.In("[%d]", i).Error("%s", err)
		}
		out.paths = append(out.paths, m)
	}
	return out
}

// What {*} and {**} of a template match: the characters that a path may hold.
const (
	oneSegment  = `[A-Za-z0-9._~%!$&'()+,;:@=-]+`
	anySegments = `[A-Za-z0-9._~%!$&'()+,;:@=/-]*`
)

// path converts a path: exact, "/a*", "*/a" or a template with {*} and {**}. A
// prefix ends anywhere, not at a segment's border.
func path(text string) (v1alpha1.PathMatch, error) {
	var m v1alpha1.PathMatch
	switch begin, isPrefix := strings.CutSuffix(text, "*"); {
	case strings.Contains(text, "{*}") || strings.Contains(text, "{**}"):
		m.Regex = regexp.QuoteMeta(text)
		m.Regex = strings.ReplaceAll(m.Regex, regexp.QuoteMeta("{*}"), oneSegment)
		m.Regex = strings.ReplaceAll(m.Regex, regexp.QuoteMeta("{**}"), anySegments)
		if strings.Contains(strings.NewReplacer("{*}", "", "{**}", "").Replace(text), "*") {
			return m, fmt.Errorf("%q: a template has {*} and {**} only", text)
		}
	case isPrefix && strings.Contains(begin, "*"), strings.LastIndexByte(begin, '*') > 0:
		return m, fmt.Errorf("%q: '*' stands at the beginning or at the end", text)
	case text == "/*":
		m.Prefix = "/"
	case isPrefix:
		m.Regex = regexp.QuoteMeta(begin) + ".*"
	case strings.HasPrefix(text, "*"):
		m.Regex = ".*" + regexp.QuoteMeta(text[1:])
		text = "/" + text
	default:
		m.Exact = text
	}
	switch {
	case !strings.HasPrefix(text, "/"):
		return m, fmt.Errorf("%q: a path begins with '/'", text)
	case len(m.Regex) > maxRegex, len(m.Exact) > maxPath:
		return m, fmt.Errorf("%q is too long: as an expression it has %d bytes, and may have %d", text, len(m.Regex)+len(m.Exact), maxRegex)
	}
	return m, nil
}

// hosts converts hosts, of which ours have no port: "a" and "a:*" together are
// a, with a port or without.
func (c *converter) hosts(at manifest.At, list []string) conditions {
	out := conditions{request: true}
	plain, ported := map[string]int{}, map[string]int{}
	for i, h := range list {
		at := at.In("[%d]", i)
		h = strings.ToLower(h)
		if h == "*" {
			return conditions{request: true}
		}
		name, anyPort := strings.CutSuffix(h, ":*")
		suffix, wild := strings.CutPrefix(name, "*.")
		switch {
		case wild && anyPort:
			at.Error("%q: '*' stands at the beginning or at the end", h)
		case name == "" || wild && suffix == "" || strings.Contains(strings.TrimPrefix(name, "*."), "*"):
			at.Error("%q: '*' stands for whole labels at the beginning, as in \"*.example.com\", or for the port", h)
		case strings.Contains(name, ":"):
			at.Error("%q: hosts are compared without their port: use ports", h)
		case anyPort:
			ported[name] = i
		default:
			plain[name] = i
		}
		if !slices.Contains(out.hosts, name) {
			out.hosts = append(out.hosts, name)
		}
	}
	for _, name := range out.hosts {
		i, isPlain := plain[name]
		j, isPorted := ported[name]
		switch {
		case isPlain == isPorted || c.anyHostPort:
		case isPlain && strings.HasPrefix(name, "*."):
			at.In("[%d]", i).Error("%q: hosts are compared without their port here, and Istio means those without one: convert with --hosts-any-port to mean all", name)
		case isPlain:
			at.In("[%d]", i).Error("%q: hosts are compared without their port here, and Istio means %q without one: add \"%s:*\", or convert with --hosts-any-port", name, name, name)
		default:
			at.In("[%d]", j).Error("%q: hosts are compared without their port here: add %q, or convert with --hosts-any-port", name+":*", name)
		}
	}
	return out
}
