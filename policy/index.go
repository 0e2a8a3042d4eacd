package policy

import "slices"

// indexAtLeast is how many rules a direction has before an index pays: below it
// trying them one by one is faster than looking up which to try.
const indexAtLeast = 8

// Index finds the rules of a Set that may match a flow, so that Evaluate and
// the projections do not try all of them. It decides nothing: each rule that it
// finds is matched as it would be without, in the same order, and it may find
// too many but never too few.
//
// It files each rule by what the rule says about ports, paths, methods, hosts
// and the peer, as far as that can be looked up: a rule is found under a
// "/v2/keys" of its paths, but not by the value of a header. Its size is
// linear in the number of entries that rules list: 30 to 230 bytes for each
// rule of BenchmarkNewIndex, which is less than the rule itself.
type Index struct {
	directions [2]*ruleIndex // by Direction; nil where one by one is as good
}

// Equal is always true: an index follows from the set to which it belongs.
func (x *Index) Equal(*Index) bool { return true }

// Indexed is the set with an index of its rules where they are many. The set
// itself is not changed; its tiers are shared. Who evaluates a set often asks
// for it once, when the set arrives.
func (s *Set) Indexed() *Set { return s.indexed(indexAtLeast) }

func (s *Set) indexed(atLeast int) *Set {
	if s == nil {
		return nil
	}
	out := *s
	out.Index = newIndex(s, atLeast)
	return &out
}

// NewIndex is an index of the set, however few its rules are.
func NewIndex(s *Set) *Index { return newIndex(s, 1) }

func newIndex(s *Set, atLeast int) *Index {
	x := &Index{}
	for _, d := range []Direction{Ingress, Egress} {
		if tiers := s.Tiers(d); rules(tiers) >= atLeast {
			x.directions[d] = newRuleIndex(tiers)
		}
	}
	return x
}

func rules(tiers []Tier) int {
	n := 0
	for t := range tiers {
		for p := range tiers[t].Policies {
			n += len(tiers[t].Policies[p].Rules)
		}
	}
	return n
}

// index is the one to use for the direction, nil for none. An index that was
// made of other tiers, such as those of the set of which this one is a changed
// copy, is not used.
func (s *Set) index(d Direction) *ruleIndex {
	if s.Index == nil || d > Egress {
		return nil
	}
	x, tiers := s.Index.directions[d], s.Tiers(d)
	if x == nil || len(tiers) != len(x.tiers) || &tiers[0] != &x.tiers[0] {
		return nil
	}
	return x
}

// ruleIndex is the index of one direction. Rules are numbered in order of
// evaluation, those of policies in Audit mode included.
type ruleIndex struct {
	tiers []Tier
	spans []span    // of the tiers
	rules []ruleRef // by number
	// live are the rules that can match at all, enforcing those of them that
	// decide, plain those without a condition on requests.
	live, enforcing, plain dense
	// firstAudit is the number of the first rule at or after the first policy in
	// Audit mode; more than all when there is none.
	firstAudit int
	// beyond is what beyondPackets says of the tiers.
	beyond bool

	lists   lists
	ports   portColumn
	paths   pathColumn
	methods valueColumn
	hosts   hostColumn
	peers   peerColumn
}

// span is the numbers of a tier's rules, first to before the end.
type span struct {
	first, end int
	// selected: a policy of the tier enforces.
	selected bool
}

type ruleRef struct {
	policy *Policy
	rule   *Rule
}

func newRuleIndex(tiers []Tier) *ruleIndex {
	n := rules(tiers)
	x := &ruleIndex{
		tiers: tiers, spans: make([]span, len(tiers)), rules: make([]ruleRef, 0, n), firstAudit: n + 1,
		live: newDense(n), enforcing: newDense(n), plain: newDense(n), beyond: beyondPacketsOf(tiers),
	}
	b := newBuilder(n)
	for t := range tiers {
		x.spans[t].first = len(x.rules)
		for i := range tiers[t].Policies {
			p := &tiers[t].Policies[i]
			if p.Mode == Audit {
				x.firstAudit = min(x.firstAudit, len(x.rules))
			} else {
				x.spans[t].selected = true
			}
			for j := range p.Rules {
				number := len(x.rules)
				x.rules = append(x.rules, ruleRef{p, &p.Rules[j]})
				// What cannot be resolved is widened to what it could mean, or gone.
				resolved, ok := resolveRule(p, &p.Rules[j])
				if !ok {
					continue
				}
				x.live.set(number)
				if p.Mode != Audit {
					x.enforcing.set(number)
				}
				if len(resolved.HTTP) == 0 {
					x.plain.set(number)
				}
				b.add(number, &resolved)
			}
		}
		x.spans[t].end = len(x.rules)
	}
	b.freeze(x)
	return x
}

// walk is Set.walk.
func (x *ruleIndex) walk(s *Set, d Direction, v *view, audit bool, seen *bool) Verdict {
	var logs []RuleRef
	var q search
	q.init(x, v, audit)
tiers:
	for t := range x.tiers {
		tier, end := &x.tiers[t], x.spans[t].end
		for n := q.next(end); n >= 0; n = q.next(end) {
			policy, rule := x.rules[n].policy, x.rules[n].rule
			if v.rule(policy, rule) != Yes {
				continue
			}
			switch rule.Action {
			case Log:
				logs = append(logs, RuleRef{tier.Name, policy.Ref, rule.Name})
			case Pass:
				q.skip(end)
				continue tiers
			default:
				*seen = x.firstAudit <= n
				return byRule(d, tier, policy, rule, logs)
			}
		}
		if (x.spans[t].selected || audit && len(tier.Policies) > 0) && tier.DefaultAction != Pass {
			*seen = x.firstAudit <= end
			return Verdict{Action: Deny, Direction: d, Tier: tier.Name, Reason: ReasonTierDefault, Logs: logs}
		}
	}
	*seen = x.firstAudit <= len(x.rules)
	return s.byDefault(d, logs)
}

// reach is Set.reach.
func (x *ruleIndex) reach(s *Set, v *view) (allow, deny bool) {
	var q search
	q.init(x, v, false)
tiers:
	for t := range x.tiers {
		end, passes := x.spans[t].end, false
		for n := q.next(end); n >= 0; n = q.next(end) {
			rule := x.rules[n].rule
			if rule.Action == Log {
				continue
			}
			outcome := v.rule(x.rules[n].policy, rule)
			if outcome == No {
				continue
			}
			switch rule.Action {
			case Pass:
				passes = true
			case Allow:
				allow = true
			default:
				deny = true
			}
			if outcome == Maybe {
				continue
			}
			if passes {
				q.skip(end)
				continue tiers
			}
			return allow, deny
		}
		if x.spans[t].selected && x.tiers[t].DefaultAction != Pass {
			deny = true
			if !passes {
				return allow, deny
			}
		}
	}
	if s.DefaultAction == Allow {
		return true, deny
	}
	return allow, true
}

// builder collects which rules are filed under which value, before the lists
// are written down in their final form.
type builder struct {
	n       int
	numbers [][]int32 // by list
	ports   portBuilder
	paths   pathBuilder
	methods valueBuilder
	hosts   hostBuilder
	peers   peerBuilder
}

func newBuilder(n int) *builder {
	b := &builder{n: n, numbers: make([][]int32, 1)} // list 0 is none
	b.ports = newPortBuilder(n)
	b.paths = newPathBuilder(n)
	b.methods = newValueBuilder(n)
	b.hosts = newHostBuilder(n)
	b.peers = newPeerBuilder(n)
	return b
}

// list makes an empty list.
func (b *builder) list() uint32 {
	b.numbers = append(b.numbers, nil)
	return uint32(len(b.numbers) - 1)
}

// file puts a rule on a list, making it when it is 0.
func (b *builder) file(list *uint32, number int) {
	if *list == 0 {
		*list = b.list()
	}
	on := &b.numbers[*list]
	if k := len(*on); k == 0 || (*on)[k-1] != int32(number) {
		*on = append(*on, int32(number))
	}
}

func (b *builder) add(number int, r *Rule) {
	b.ports.add(b, number, r.Ports)
	b.requests(number, r.HTTP)
	b.peers.add(number, r)
}

// requests files the rule under each path, method and host that its entries
// name; when an entry names none, requests of any may match.
func (b *builder) requests(number int, list []HTTPMatch) {
	anyPath, anyMethod, anyHost := len(list) == 0, len(list) == 0, len(list) == 0
	for i := range list {
		m := &list[i]
		anyPath = anyPath || !pathsFiled(m)
		anyMethod = anyMethod || len(m.Methods) == 0
		anyHost = anyHost || len(m.Hosts) == 0
	}
	if anyPath {
		b.paths.any.set(number)
	}
	if anyMethod {
		b.methods.any.set(number)
	}
	if anyHost {
		b.hosts.any.set(number)
	}
	for i := range list {
		m := &list[i]
		if !anyPath {
			b.paths.add(b, number, m)
		}
		if !anyMethod {
			for _, method := range m.Methods {
				b.methods.add(b, number, method)
			}
		}
		if !anyHost {
			for _, h := range m.Hosts {
				b.hosts.add(b, number, h)
			}
		}
	}
}

func (b *builder) freeze(x *ruleIndex) {
	b.ports.cut(b)
	b.peers.choose(b)
	at := x.lists.write(b.n, b.numbers)
	x.ports = b.ports.freeze(b.n, at)
	x.paths = b.paths.freeze(b.n, at)
	x.methods = b.methods.freeze(b.n, at)
	x.hosts = b.hosts.freeze(b.n, at)
	x.peers = b.peers.freeze(b.n, at)
}

// worthwhile reports whether a column keeps enough rules out to be looked at.
func worthwhile(anyone *dense, n int) bool { return (n-anyone.count())*16 >= n }

// lists are sets of rule numbers, in one piece of memory. Each is a summary,
// one bit for each word of 64 rules, and then the words that are not empty.
type lists struct {
	words   []uint64
	summary int // words of a summary
}

// write returns where each list begins.
func (l *lists) write(n int, numbers [][]int32) []uint32 {
	l.summary = len(newDense(n).summary)
	at := make([]uint32, len(numbers))
	size := 0
	for _, list := range numbers {
		slices.Sort(list)
		size += l.summary
		for i, number := range list {
			if i == 0 || list[i-1]>>6 != number>>6 {
				size++
			}
		}
	}
	l.words = make([]uint64, 0, size)
	for i, list := range numbers {
		begin := len(l.words)
		at[i] = uint32(begin)
		l.words = append(l.words, make([]uint64, l.summary)...)
		for j, number := range list {
			if j == 0 || list[j-1]>>6 != number>>6 {
				l.words = append(l.words, 0)
				l.words[begin+int(number>>12)] |= 1 << (number >> 6 & 63)
			}
			l.words[len(l.words)-1] |= 1 << (number & 63)
		}
	}
	return at
}
