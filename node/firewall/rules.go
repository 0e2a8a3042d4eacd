package firewall

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/policy"
)

// group renders the tiers of one policy set in one direction.
type group struct {
	r     *renderer
	d     policy.Direction
	set   *policy.Set
	tiers []policy.Tier
	named []policy.NamedPort // the subject's own
	*rendered
}

// render makes one chain a tier: base, base-1, base-2, … A packet enters at the
// first; "return" lets it pass, "drop" does not, Pass goes to the next.
//
// With sidecar, TCP that some completion of its L7 attributes lets pass must
// reach the sidecar; without, only what every completion lets pass may pass.
// Other protocols carry no L7 attributes: rules that need them do not match.
func (g *group) render(base string, sidecar bool) {
	for i := range g.tiers {
		tier := &g.tiers[i]
		var rules []rule
		selected := false
		for p := range tier.Policies {
			pol := &tier.Policies[p]
			if pol.Mode == policy.Audit {
				continue
			}
			selected = true
			for q := range pol.Rules {
				rules = append(rules, g.rule(tier, pol, &pol.Rules[q], sidecar, base, i)...)
			}
		}
		switch {
		case !selected || tier.DefaultAction == policy.Pass:
			last := g.leave(base, i, "tier "+tier.Name+": pass")
			last.quiet = true
			rules = append(rules, last)
		default:
			rules = append(rules, rule{comment: clip("tier " + tier.Name + ": no rule matched of " + enforcing(tier)),
				drop: &Drop{g.d, flow.Decision{Tier: tier.Name, Selecting: flow.Selecting(tier), Reason: policy.ReasonTierDefault}}})
		}
		g.split(tierChain(base, i), rules)
	}
	if len(g.tiers) == 0 {
		last := g.leave(base, -1, "no policy selects the pod")
		last.quiet = true
		g.chain(base, []rule{last})
	}
}

// longChain is how many rules of one IP version make a chain of their own worth
// the step to it.
const longChain = 8

// split makes the chain of a tier. Of a long one the packets of IPv6 go to a
// chain of their own: each sees only the rules that it could match.
func (g *group) split(name string, rules []rule) {
	of := func(family string) (out []rule, own int) {
		for _, r := range rules {
			switch r.family() {
			case family:
				own++
				fallthrough
			case "":
				out = append(out, r)
			}
		}
		return out, own
	}
	rules4, own4 := of("ip")
	rules6, own6 := of("ip6")
	if own4+own6 < longChain {
		g.chain(name, rules)
		return
	}
	g.chain(name+"-ip6", rules6)
	g.chain(name, append([]rule{{conds: []cond{{kind: ofFamily, family: "ip6"}}, to: goOn, next: name + "-ip6", quiet: true}}, rules4...))
}

// leave is what leaving tier i means, of whatever matches.
func (g *group) leave(base string, i int, comment string) rule {
	switch {
	case i+1 < len(g.tiers):
		return rule{to: goOn, next: tierChain(base, i+1), comment: comment}
	case g.set.DefaultAction == policy.Allow:
		return rule{to: pass, comment: comment}
	}
	return rule{comment: comment, drop: &Drop{g.d, flow.Decision{Reason: policy.ReasonDefaultDeny}}}
}

func tierChain(base string, i int) string {
	if i == 0 {
		return base
	}
	return fmt.Sprintf("%s-%d", base, i)
}

// rule renders one rule of a policy: one rule of the kernel for each
// combination of peer and protocol.
func (g *group) rule(t *policy.Tier, p *policy.Policy, r *policy.Rule, sidecar bool, base string, tier int) []rule {
	denies := r.Action != policy.Allow && r.Action != policy.Pass && r.Action != policy.Log
	if r.Action == policy.Log {
		return nil
	}
	invalid := r.Invalid != "" || p.Invalid != ""
	if invalid && !denies {
		return nil
	}
	var out []rule
	for _, m := range g.peers(r, denies, invalid) {
		maybe := r.L7() || m.undecided
		var what rule
		switch {
		case !maybe && r.Action == policy.Allow:
			what = rule{to: pass}
		case !maybe && r.Action == policy.Pass:
			what = g.leave(base, tier, "")
		case !maybe:
		case sidecar && !denies:
			// Some completion may be allowed here or in a later tier: the sidecar
			// decides, with the whole of Evaluate.
			what = rule{to: pass}
		case sidecar:
			continue // some completions go on
		case r.Action == policy.Allow:
			continue // some completions go on, and nobody could tell which
		}
		// What is left is Deny, or Pass of which nobody could tell whether it applies.
		if what.to == deny && what.drop == nil {
			what.drop = g.denies(t, p, r, maybe)
		}
		what.comment = comment(p, r)
		for _, ports := range g.ports(r.Ports, m, denies) {
			one := what
			one.conds = slices.Clone(m.conds)
			if maybe {
				one.conds = append(one.conds, cond{kind: ofProtocol, proto: policy.TCP})
			}
			one.conds = append(one.conds, ports...)
			out = append(out, one)
		}
	}
	return out
}

// denies is the word on what a rule drops. A Pass of which packets can't tell
// whether it applies drops as well.
func (g *group) denies(t *policy.Tier, p *policy.Policy, r *policy.Rule, maybe bool) *Drop {
	d := &Drop{g.d, flow.Decision{Tier: t.Name, Policy: p.Ref.String(), Rule: r.Name, Reason: policy.ReasonRule}}
	if maybe {
		d.Reason = "packets can't tell whether the rule matches, and no sidecar sees them"
	}
	return d
}

// comment names the policy and rule in the listing of the kernel's rules.
func comment(p *policy.Policy, r *policy.Rule) string {
	return clip(fmt.Sprintf("%s %s: %s", p.Ref, r.Name, r.Action))
}

// enforcing names the policies of a tier whose silence denies.
func enforcing(t *policy.Tier) string {
	var refs []string
	for i := range t.Policies {
		if t.Policies[i].Mode != policy.Audit {
			refs = append(refs, t.Policies[i].Ref.String())
		}
	}
	return strings.Join(refs, ", ")
}

// clip makes a comment of text: printable, and no longer than nft takes.
func clip(text string) string {
	text = strings.Map(func(c rune) rune {
		if c == '"' || c == '\\' || c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, text)
	if len(text) > 120 {
		text = text[:117] + "..."
	}
	return text
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	if b == "" {
		return a
	}
	return a + " " + b
}
