package verdict

import (
	"fmt"

	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/control/compile"
)

// mostOthers is how many other pods of a name are asked about.
const mostOthers = 200

// others notes for a name of several pods whether the answer is that of all.
func (w *world) others(q *question, a *Answer) {
	for _, side := range []struct {
		end     *end
		replace func(*question, *end)
	}{
		{q.from, func(q *question, e *end) { q.from = e }},
		{q.to, func(q *question, e *end) { q.to = e }},
	} {
		pods := side.end.pods
		if len(pods) < 2 {
			continue
		}
		var differ []string
		for _, p := range pods[1:min(len(pods), mostOthers)] {
			e := w.podEnd(side.end.asked, []*compile.Pod{p})
			e.service, e.port = side.end.service, side.end.port
			other := *q
			side.replace(&other, e)
			sameFamily(&other)
			if got := w.decide(&other); got.Allowed != a.Allowed {
				differ = append(differ, e.String())
			}
		}
		text := fmt.Sprintf("%s stands for %d pods: the answer is the same for all", side.end.asked, len(pods))
		if len(differ) > 0 {
			verb := "denied"
			if !a.Allowed {
				verb = "allowed"
			}
			a.differ = append(a.differ, differ...)
			text = fmt.Sprintf("%s stands for %d pods, and this is for %s; %s is it for %s", side.end.asked, len(pods), side.end, verb, run.Some(differ))
		}
		a.note("%s", text)
	}
}
