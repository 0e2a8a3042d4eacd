// Package selector is the selector language of Calico's policies: label
// comparisons joined by &&, || and !. It parses an expression, evaluates it on
// labels and writes it as an OR of ANDs, which is what Kubernetes' label
// selectors can say piece by piece.
//
// It owns the language only. What a label stands for (a pod's, its namespace's)
// is package calico's.
package selector

import (
	"slices"
	"strings"
)

// Kind says what an expression is.
type Kind uint8

// An expression is a constant, a comparison of one label, or made of others.
const (
	All    Kind = iota // all(): everything
	Global             // global(): what is in no namespace
	Match              // a comparison of one label
	Not
	And
	Or
)

// Op is a comparison.
type Op uint8

// In is == too, with one value; != and "not in" are a Not of it.
const (
	In Op = iota
	Has
	Contains
	StartsWith
	EndsWith
)

// Expr is a parsed expression. It is immutable.
type Expr struct {
	Kind   Kind
	Label  string   // of a Match
	Op     Op       // of a Match
	Values []string // of a Match: any number for In, one for the substrings
	Subs   []*Expr  // one of a Not, two or more of And and Or
}

// Matches evaluates the expression on labels. global() is true where inNamespace
// is false.
func (e *Expr) Matches(labels map[string]string, inNamespace bool) bool {
	switch e.Kind {
	case All:
		return true
	case Global:
		return !inNamespace
	case Match:
		value, ok := labels[e.Label]
		return ok && e.compare(value)
	case Not:
		return !e.Subs[0].Matches(labels, inNamespace)
	case And:
		for _, s := range e.Subs {
			if !s.Matches(labels, inNamespace) {
				return false
			}
		}
		return true
	case Or:
		for _, s := range e.Subs {
			if s.Matches(labels, inNamespace) {
				return true
			}
		}
	}
	return false
}

func (e *Expr) compare(value string) bool {
	switch e.Op {
	case In:
		return slices.Contains(e.Values, value)
	case Has:
		return true
	case Contains:
		return strings.Contains(value, e.Values[0])
	case StartsWith:
		return strings.HasPrefix(value, e.Values[0])
	case EndsWith:
		return strings.HasSuffix(value, e.Values[0])
	}
	return false
}

// Rewrite is the expression with each leaf (All, Global or Match) replaced.
func (e *Expr) Rewrite(leaf func(*Expr) *Expr) *Expr {
	if len(e.Subs) == 0 {
		return leaf(e)
	}
	out := *e
	out.Subs = make([]*Expr, len(e.Subs))
	for i, s := range e.Subs {
		out.Subs[i] = s.Rewrite(leaf)
	}
	return &out
}

// Negate is the opposite of e.
func Negate(e *Expr) *Expr { return &Expr{Kind: Not, Subs: []*Expr{e}} }

// Both is the AND of the expressions that are not nil; nil for none.
func Both(list ...*Expr) *Expr {
	list = slices.DeleteFunc(slices.Clone(list), func(e *Expr) bool { return e == nil })
	switch len(list) {
	case 0:
		return nil
	case 1:
		return list[0]
	}
	return &Expr{Kind: And, Subs: list}
}

// String writes the expression so that Parse reads the same one.
func (e *Expr) String() string {
	switch e.Kind {
	case All:
		return "all()"
	case Global:
		return "global()"
	case Match:
		return e.matchString()
	case Not:
		return "!(" + e.Subs[0].String() + ")"
	}
	sep := " && "
	if e.Kind == Or {
		sep = " || "
	}
	parts := make([]string, len(e.Subs))
	for i, s := range e.Subs {
		parts[i] = s.String()
		if s.Kind == And || s.Kind == Or {
			parts[i] = "(" + parts[i] + ")"
		}
	}
	return strings.Join(parts, sep)
}

func (e *Expr) matchString() string {
	switch e.Op {
	case Has:
		return "has(" + e.Label + ")"
	case Contains:
		return e.Label + " contains " + quote(e.Values[0])
	case StartsWith:
		return e.Label + " starts with " + quote(e.Values[0])
	case EndsWith:
		return e.Label + " ends with " + quote(e.Values[0])
	}
	values := make([]string, len(e.Values))
	for i, v := range e.Values {
		values[i] = quote(v)
	}
	if len(values) == 1 {
		return e.Label + " == " + values[0]
	}
	return e.Label + " in {" + strings.Join(values, ", ") + "}"
}

// quote: the language has no escapes, so a text holds one kind of quotes at most.
func quote(text string) string {
	if strings.Contains(text, `"`) {
		return "'" + text + "'"
	}
	return `"` + text + `"`
}
