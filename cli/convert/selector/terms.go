package selector

import (
	"fmt"
	"slices"
)

// Literal is a comparison or global(), or the opposite of it.
type Literal struct {
	Kind   Kind // Match or Global
	Label  string
	Op     Op
	Values []string
	Not    bool
}

// Matches evaluates the literal.
func (l *Literal) Matches(labels map[string]string, inNamespace bool) bool {
	e := Expr{Kind: l.Kind, Label: l.Label, Op: l.Op, Values: l.Values}
	return e.Matches(labels, inNamespace) != l.Not
}

// String writes the literal in the language.
func (l *Literal) String() string {
	e := &Expr{Kind: l.Kind, Label: l.Label, Op: l.Op, Values: l.Values}
	switch {
	case !l.Not:
		return e.String()
	case l.Kind == Match && l.Op == In && len(l.Values) == 1:
		return l.Label + " != " + quote(l.Values[0])
	case l.Kind == Match && l.Op == In:
		return l.Label + " not" + e.String()[len(l.Label):]
	}
	return "!" + e.String()
}

// Term is an AND of literals; the empty one is everything.
type Term []Literal

// Terms writes the expression as an OR of terms; no term means nothing. More than
// limit terms are an error: the expression would take too many policies.
func (e *Expr) Terms(limit int) ([]Term, error) {
	terms, err := terms(e, false, limit)
	if err != nil {
		return nil, err
	}
	return merge(terms), nil
}

func terms(e *Expr, negated bool, limit int) ([]Term, error) {
	switch e.Kind {
	case All:
		if negated {
			return nil, nil
		}
		return []Term{{}}, nil
	case Not:
		return terms(e.Subs[0], !negated, limit)
	case Global, Match:
		return []Term{{{Kind: e.Kind, Label: e.Label, Op: e.Op, Values: e.Values, Not: negated}}}, nil
	}
	var out []Term
	product := (e.Kind == And) != negated
	if product {
		out = []Term{{}}
	}
	for _, s := range e.Subs {
		sub, err := terms(s, negated, limit)
		if err != nil {
			return nil, err
		}
		if product {
			out = times(out, sub)
		} else {
			out = append(out, sub...)
		}
		out = merge(out)
		if len(out) > limit {
			return nil, fmt.Errorf("written as an OR of ANDs it has more than %d parts: split the policy", limit)
		}
	}
	return out, nil
}

// times is the AND of two lists.
func times(a, b []Term) []Term {
	out := make([]Term, 0, len(a)*len(b))
	for _, x := range a {
		for _, y := range b {
			t := slices.Clone(x)
			for _, l := range y {
				if !slices.ContainsFunc(t, func(o Literal) bool { return same(&o, &l) }) {
					t = append(t, l)
				}
			}
			out = append(out, t)
		}
	}
	return out
}

func same(a, b *Literal) bool {
	return a.Kind == b.Kind && a.Label == b.Label && a.Op == b.Op && a.Not == b.Not && slices.Equal(a.Values, b.Values)
}

// merge drops repeated terms and joins terms that differ only in the values of
// one label: a == "x" || a == "y" is a in {"x", "y"}.
func merge(terms []Term) []Term {
	for again := true; again; {
		again = false
		for i := 0; i < len(terms); i++ {
			for j := i + 1; j < len(terms); j++ {
				joined, ok := join(terms[i], terms[j])
				if !ok {
					continue
				}
				terms = slices.Delete(slices.Clone(terms), j, j+1)
				terms[i], again = joined, true
				j--
			}
		}
	}
	return terms
}

func join(a, b Term) (Term, bool) {
	if len(a) != len(b) {
		return nil, false
	}
	differ := -1
	for i := range a {
		if same(&a[i], &b[i]) {
			continue
		}
		x, y := &a[i], &b[i]
		if differ >= 0 || x.Kind != Match || y.Kind != Match || x.Label != y.Label || x.Op != In || y.Op != In || x.Not || y.Not {
			return nil, false
		}
		differ = i
	}
	if differ < 0 {
		return a, true
	}
	out := slices.Clone(a)
	values := slices.Clone(a[differ].Values)
	for _, v := range b[differ].Values {
		if !slices.Contains(values, v) {
			values = append(values, v)
		}
	}
	out[differ].Values = values
	return out, true
}
