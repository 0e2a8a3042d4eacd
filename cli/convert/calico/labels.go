package calico

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/hauberk-mesh/hauberk/cli/convert/manifest"
	"github.com/hauberk-mesh/hauberk/cli/convert/selector"
)

// Labels that Calico adds to what selectors select. Those of the namespace and
// of the service account stand in the same map under a prefix.
const (
	labelNamespace      = "projectcalico.org/namespace"
	labelServiceAccount = "projectcalico.org/serviceaccount"
	labelOrchestrator   = "projectcalico.org/orchestrator"
	labelName           = "projectcalico.org/name"
	prefixNamespace     = "pcns."
	prefixAccount       = "pcsa."

	// kubernetesName is on every namespace, put there by the API server.
	kubernetesName = "kubernetes.io/metadata.name"
)

// maxTerms bounds how many policies or peers one selector becomes.
const maxTerms = 50

// parse reads a selector of a field; false when it can't be read.
func parse(at manifest.At, text string) (*selector.Expr, bool) {
	e, err := selector.Parse(text)
	if err != nil {
		at.Error("%q is no selector: %s", text, err)
		return nil, false
	}
	return e, true
}

// parseNamespaces reads a selector of namespaces as one of what is in them:
// all() is what is in any namespace.
func parseNamespaces(at manifest.At, text string) (*selector.Expr, bool) {
	e, ok := parse(at, text)
	if !ok {
		return nil, false
	}
	return e.Rewrite(func(leaf *selector.Expr) *selector.Expr {
		switch leaf.Kind {
		case selector.All:
			return selector.Negate(&selector.Expr{Kind: selector.Global})
		case selector.Match:
			return prefixed(leaf, prefixNamespace)
		}
		return leaf
	}), true
}

func parseAccounts(at manifest.At, text string) (*selector.Expr, bool) {
	e, ok := parse(at, text)
	if !ok {
		return nil, false
	}
	return e.Rewrite(func(leaf *selector.Expr) *selector.Expr {
		if leaf.Kind == selector.Match {
			return prefixed(leaf, prefixAccount)
		}
		return leaf
	}), true
}

func prefixed(leaf *selector.Expr, prefix string) *selector.Expr {
	out := *leaf
	out.Label = prefix + leaf.Label
	return &out
}

// inNamespace is the selector of what is in the namespace.
func inNamespace(name string) *selector.Expr {
	return &selector.Expr{Kind: selector.Match, Label: labelNamespace, Op: selector.In, Values: []string{name}}
}

// pods is one term of a selector as far as it can select pods.
type pods struct {
	// namespaces are names; nil means any. But if own, only the policy's.
	namespaces []string
	own        bool
	namespace  []metav1.LabelSelectorRequirement
	pod        []metav1.LabelSelectorRequirement
	account    []metav1.LabelSelectorRequirement
	// accounts are names; nil means any.
	accounts []string
	// hasAccounts tells no accounts from any.
	hasAccounts bool
}

// podsOf reads a term of a policy of the namespace, empty for a global one.
// none says that it can select no pod.
func podsOf(at manifest.At, term selector.Term, own string) (p pods, none, ok bool) {
	ok = true
	for i := range term {
		l := &term[i]
		if l.Kind == selector.Global {
			none = none || !l.Not
			continue
		}
		switch key := l.Label; {
		case key == labelOrchestrator:
			none = none || !l.Matches(map[string]string{labelOrchestrator: "k8s"}, true)
		case key == labelNamespace, key == prefixNamespace+labelName, key == prefixNamespace+kubernetesName:
			if own != "" && l.Op == selector.In && !l.Not && len(l.Values) == 1 && l.Values[0] == own && key == labelNamespace {
				p.own = true
				continue
			}
			r, always, can := requirement(at, l, kubernetesName)
			ok = ok && can
			if always {
				continue
			}
			if r.Operator == metav1.LabelSelectorOpIn {
				p.namespaces, none = narrow(p.namespaces, r.Values, none)
				continue
			}
			if r.Operator == metav1.LabelSelectorOpDoesNotExist {
				none = true
				continue
			}
			p.namespace = append(p.namespace, r)
		case key == labelServiceAccount, key == prefixAccount+labelName:
			switch {
			case l.Op == selector.Has:
				none = none || l.Not
			case l.Op == selector.In && !l.Not:
				p.accounts, none = narrow(p.accounts, l.Values, none)
				p.hasAccounts = true
			default:
				at.Error("%s: service accounts are named one by one: write those that are meant", l)
				ok = false
			}
		default:
			into := &p.pod
			if rest, cut := strings.CutPrefix(key, prefixNamespace); cut {
				key, into = rest, &p.namespace
			} else if rest, cut := strings.CutPrefix(key, prefixAccount); cut {
				key, into = rest, &p.account
			}
			r, always, can := requirement(at, l, key)
			ok = ok && can
			if can && !always {
				*into = append(*into, r)
			}
		}
	}
	if p.own {
		// Its own namespace is the one whose name is known.
		if p.namespaces != nil && !slices.Contains(p.namespaces, own) {
			none = true
		}
		for i := 0; i < len(p.namespace); i++ {
			if r := p.namespace[i]; r.Key == kubernetesName && r.Operator == metav1.LabelSelectorOpNotIn {
				none = none || slices.Contains(r.Values, own)
				p.namespace = slices.Delete(p.namespace, i, i+1)
				i--
			}
		}
		p.namespaces = nil
	}
	return p, none, ok
}

// narrow is the names that are in both lists, where nil means all.
func narrow(list, values []string, none bool) ([]string, bool) {
	if list == nil {
		return slices.Clone(values), none || len(values) == 0
	}
	out := []string{}
	for _, v := range list {
		if slices.Contains(values, v) {
			out = append(out, v)
		}
	}
	return out, none || len(out) == 0
}

// requirement is a literal as a Kubernetes label selector says it. always says
// that every object matches.
func requirement(at manifest.At, l *selector.Literal, key string) (r metav1.LabelSelectorRequirement, always, ok bool) {
	if problems := validation.IsQualifiedName(key); len(problems) > 0 {
		at.Error("%s: %q can be no object's label: %s", l, key, strings.Join(problems, ", "))
		return r, false, false
	}
	r = metav1.LabelSelectorRequirement{Key: key}
	switch {
	case l.Op == selector.Has && !l.Not:
		r.Operator = metav1.LabelSelectorOpExists
	case l.Op == selector.Has:
		r.Operator = metav1.LabelSelectorOpDoesNotExist
	case l.Op != selector.In:
		at.Error("%s: label selectors of Kubernetes compare whole values only: name the values, or give the objects a label of their own", l)
		return r, false, false
	default:
		for _, v := range l.Values {
			if problems := validation.IsValidLabelValue(v); len(problems) > 0 {
				at.Error("%s: %q can be no label's value: %s", l, v, strings.Join(problems, ", "))
				return r, false, false
			}
		}
		r.Operator, r.Values = metav1.LabelSelectorOpIn, slices.Clone(l.Values)
		if l.Not {
			r.Operator = metav1.LabelSelectorOpNotIn
		}
		if len(l.Values) == 0 { // in {} is nothing, not in {} everything
			if l.Not {
				return r, true, true
			}
			at.Error("%s: it selects nothing: write the values, or remove it", l)
			return r, false, false
		}
	}
	return r, false, true
}

// labelSelector writes one value as matchLabels, which reads better.
func labelSelector(list []metav1.LabelSelectorRequirement) *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	for _, r := range list {
		if _, taken := s.MatchLabels[r.Key]; r.Operator == metav1.LabelSelectorOpIn && len(r.Values) == 1 && !taken {
			if s.MatchLabels == nil {
				s.MatchLabels = map[string]string{}
			}
			s.MatchLabels[r.Key] = r.Values[0]
			continue
		}
		s.MatchExpressions = append(s.MatchExpressions, r)
	}
	return s
}

// namespaceSelector is the term's condition on namespaces; nil for none.
func (p *pods) namespaceSelector(own string) *metav1.LabelSelector {
	list := slices.Clone(p.namespace)
	switch {
	case p.own && len(list) > 0:
		list = append(list, named(own))
	case p.namespaces != nil:
		list = append(list, named(p.namespaces...))
	}
	if len(list) == 0 {
		return nil
	}
	return labelSelector(list)
}

func named(names ...string) metav1.LabelSelectorRequirement {
	return metav1.LabelSelectorRequirement{Key: kubernetesName, Operator: metav1.LabelSelectorOpIn, Values: names}
}

// terms writes a selector as an OR of ANDs.
func terms(at manifest.At, e *selector.Expr) ([]selector.Term, bool) {
	list, err := e.Terms(maxTerms)
	if err != nil {
		at.Error("%s", err)
		return nil, false
	}
	return list, true
}

// quoteNames lists names for a message.
func quoteNames(names []string) string { return fmt.Sprintf("%q", names) }
