package verdict

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/hauberk-mesh/hauberk/policy"
)

// requestsText says which of the samples a list has; nothing when all.
func requestsText(list, all []sample) string {
	if len(list) == len(all) {
		return ""
	}
	var parts []string
	if list[0].http == nil {
		parts, list = append(parts, "not HTTP"), list[1:]
	} else if len(list) == len(all)-1 {
		return "any request"
	}
	methods := map[string]bool{}
	for _, s := range all[1:] {
		methods[s.method] = true
	}
	byRest := map[string][]string{}
	var order []string
	for _, s := range list {
		if byRest[s.rest] == nil {
			order = append(order, s.rest)
		}
		byRest[s.rest] = append(byRest[s.rest], s.method)
	}
	byMethods := map[string][]string{}
	var texts []string
	for _, rest := range order {
		text := "any method"
		if len(byRest[rest]) < len(methods) {
			text = strings.Join(slices.Sorted(slices.Values(byRest[rest])), ", ")
		}
		if byMethods[text] == nil {
			texts = append(texts, text)
		}
		byMethods[text] = append(byMethods[text], rest)
	}
	for _, text := range texts {
		parts = append(parts, text+" of "+strings.Join(byMethods[text], ", "))
	}
	return strings.Join(parts, ", or ")
}

// flowSet collects spans that change alike.
type flowSet struct {
	spans map[flowKey]map[string][]span // by the text of the requests
	order map[flowKey][]string
}

func newFlowSet() *flowSet {
	return &flowSet{spans: map[flowKey]map[string][]span{}, order: map[flowKey][]string{}}
}

func (f *flowSet) add(key flowKey, s span, requests string) {
	if f.spans[key] == nil {
		f.spans[key] = map[string][]span{}
	}
	if f.spans[key][requests] == nil {
		f.order[key] = append(f.order[key], requests)
	}
	f.spans[key][requests] = append(f.spans[key][requests], s)
}

func (f *flowSet) text() map[flowKey][]string {
	out := map[flowKey][]string{}
	for key, requests := range f.order {
		for _, r := range requests {
			out[key] = append(out[key], spansText(f.spans[key][r], r)...)
		}
		out[key] = everything(out[key])
	}
	return out
}

// everything is shorter than all protocols.
func everything(flows []string) []string {
	if len(flows) < 4 || flows[1] != "UDP" || flows[2] != "SCTP" || !strings.HasPrefix(flows[3], "ICMP") || strings.Contains(flows[3], " ") {
		return flows
	}
	switch but, ok := strings.CutPrefix(flows[0], "TCP except "); {
	case flows[0] == "TCP":
		return append([]string{"everything"}, flows[4:]...)
	case ok && !strings.Contains(but, ":"):
		return append([]string{"everything except TCP " + but}, flows[4:]...)
	}
	return flows
}

// spansText is one text for each protocol.
func spansText(spans []span, requests string) []string {
	var out []string
	for _, protocol := range []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP, policy.ICMP, policy.ICMPv6} {
		var ranges []string
		var gaps []string
		next := 1
		var of []span
		for _, s := range spans {
			if s.protocol != protocol {
				continue
			}
			if n := len(of); n > 0 && s.label == "" && of[n-1].last+1 == s.first {
				of[n-1].last = s.last
				continue
			}
			of = append(of, s)
		}
		if len(of) == 0 {
			continue
		}
		for _, s := range of {
			if s.label != "" {
				ranges = append(ranges, s.label)
				continue
			}
			ranges = append(ranges, portsText(s.first, s.last))
			if s.first > next {
				gaps = append(gaps, portsText(next, s.first-1))
			}
			next = s.last + 1
		}
		text := protocol.String()
		switch {
		case of[0].kinds > 0 && len(of) == of[0].kinds: // every message
		case of[0].label != "":
			text += " " + strings.Join(ranges, ", ")
		case next == 65536 && len(gaps) == 0:
		case next == 65536 && len(gaps) < len(ranges):
			text += " except " + strings.Join(gaps, ", ")
		default:
			text += " " + strings.Join(ranges, ", ")
		}
		if requests != "" {
			text += ": " + requests
		}
		out = append(out, text)
	}
	return out
}

func portsText(first, last int) string {
	if first == last {
		return strconv.Itoa(first)
	}
	return fmt.Sprintf("%d-%d", first, last)
}
