package policy

import "slices"

// Operator is the relation of a selector's requirement, as in Kubernetes'
// LabelSelectorRequirement. The zero value is no operator and matches nothing.
type Operator uint8

// The four operators of a Kubernetes label selector.
const (
	_ Operator = iota
	In
	NotIn
	Exists
	DoesNotExist
)

// Requirement is one condition on a label.
type Requirement struct {
	Key      string
	Operator Operator
	Values   []string
}

// Selector is a Kubernetes label selector with matchLabels written as In
// requirements. Requirements are ANDed; the empty selector matches everything;
// "no selector" is a nil pointer and means what its field says.
type Selector struct {
	Requirements []Requirement
}

// Matches reports whether labels satisfy every requirement. A requirement whose
// operator is not known is not satisfied.
func (s *Selector) Matches(labels map[string]string) bool { return s.matches(labels, false) }

// matches is Matches with the answer to give for what cannot be resolved.
func (s *Selector) matches(labels map[string]string, unresolved bool) bool {
	for i := range s.Requirements {
		r := &s.Requirements[i]
		if !r.known() {
			if !unresolved {
				return false
			}
			continue
		}
		if !r.matches(labels) {
			return false
		}
	}
	return true
}

func (r *Requirement) known() bool { return r.Operator >= In && r.Operator <= DoesNotExist }

func (r *Requirement) matches(labels map[string]string) bool {
	value, ok := labels[r.Key]
	switch r.Operator {
	case In:
		return ok && slices.Contains(r.Values, value)
	case NotIn:
		return !ok || !slices.Contains(r.Values, value)
	case Exists:
		return ok
	case DoesNotExist:
		return !ok
	}
	return false
}
