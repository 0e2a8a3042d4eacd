package policy

// Projection is what is known of a flow's verdict when some of its attributes
// are not known. The zero value denies.
type Projection uint8

// AllDenied: every completion is denied. Mixed: it depends on what is not
// known. AllAllowed: every completion is allowed.
const (
	AllDenied Projection = iota
	Mixed
	AllAllowed
)

// String is the projection's name.
func (p Projection) String() string {
	switch p {
	case Mixed:
		return "Mixed"
	case AllAllowed:
		return "AllAllowed"
	}
	return "AllDenied"
}

// Project is the L4 projection: what packets tell of a flow's verdict. HTTP, MTLS
// and the peer's Principal are taken as unknown, whatever the flow says of
// them. With a ready sidecar the kernel drops when it is AllDenied; without one
// it passes only when it is AllAllowed.
//
// Project looks at each rule alone, as a rendering into kernel rules does:
// AllDenied and AllAllowed are always true, but Mixed may be said of a flow
// whose completions are all alike because the unknown parts of several rules
// cover each other, such as a Deny of GET before an Allow of GET. That errs to
// the safe side for both kinds of endpoint. ProjectExact sees through it.
func (s *Set) Project(d Direction, f *Flow) Projection { return s.ProjectUnknown(d, f, UnknownL7) }

// ProjectConnection is the projection when a connection's identity is known and
// its requests are not: what the sidecar asks when a connection is
// established. Of AllDenied it closes; AllAllowed needs no more questions;
// otherwise it finds the protocol and asks Evaluate for each request, or once
// with a nil HTTP when the connection turns out not to be HTTP.
func (s *Set) ProjectConnection(d Direction, f *Flow) Projection {
	return s.ProjectUnknown(d, f, UnknownHTTP)
}

// ProjectUnknown is Project with the attributes named that are not known. It
// allocates nothing.
func (s *Set) ProjectUnknown(d Direction, f *Flow, unknown Unknown) Projection {
	if v, ok := s.before(d, f, unknown); ok {
		return pure(v.Action)
	}
	var v view
	v.init(d, f, unknown)
	allow, deny := s.reach(d, &v)
	// The own node's connection is allowed when nothing more than packets comes.
	allow = allow || d == Ingress && f.fromOwnNode() && (f.HTTP == nil || unknown&UnknownHTTP != 0) && (!f.MTLS || unknown&UnknownIdentity != 0)
	switch {
	case allow && deny:
		return Mixed
	case allow:
		return AllAllowed
	}
	return AllDenied
}

func pure(a Action) Projection {
	if a == Allow {
		return AllAllowed
	}
	return AllDenied
}

// reach says which decisions can be reached when each rule whose outcome is
// Maybe may match or not, independently of the others.
func (s *Set) reach(d Direction, v *view) (allow, deny bool) {
	if x := s.index(d); x != nil {
		return x.reach(s, v)
	}
	tiers := s.Tiers(d)
tiers:
	for t := range tiers {
		tier := &tiers[t]
		selected, passes := false, false
		for p := range tier.Policies {
			policy := &tier.Policies[p]
			if policy.Mode == Audit {
				continue
			}
			selected = true
			for r := range policy.Rules {
				rule := &policy.Rules[r]
				if rule.Action == Log {
					continue
				}
				outcome := v.rule(policy, rule)
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
					continue tiers
				}
				return allow, deny
			}
		}
		if selected && tier.DefaultAction != Pass {
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
