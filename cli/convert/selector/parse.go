package selector

import (
	"fmt"
	"strings"
)

// maxDepth bounds how deeply parentheses and negations nest.
const maxDepth = 100

// Parse reads an expression. The empty one means all().
func Parse(text string) (*Expr, error) {
	p := &parser{rest: text}
	p.next()
	if p.err == nil && p.tok == end {
		return &Expr{Kind: All}, nil
	}
	e := p.or(0)
	if p.err == nil && p.tok != end {
		p.unexpected("&&, || or the end")
	}
	if p.err != nil {
		return nil, fmt.Errorf("column %d: %w", len(text)-p.at+1, p.err)
	}
	return e, nil
}

type token uint8

const (
	end token = iota
	word
	text
	equal
	notEqual
	and
	or
	not
	open
	close
	openBrace
	closeBrace
	comma
)

// parser is a recursive descent over the tokens of one line.
type parser struct {
	rest  string // what follows tok
	at    int    // length of the text from tok on
	tok   token
	value string // of word and text
	err   error
}

var symbols = []struct {
	text string
	tok  token
}{
	{"==", equal}, {"!=", notEqual}, {"&&", and}, {"||", or}, {"!", not},
	{"(", open}, {")", close}, {"{", openBrace}, {"}", closeBrace}, {",", comma},
}

func (p *parser) next() {
	if p.err != nil {
		return
	}
	p.rest = strings.TrimLeft(p.rest, " \t\r\n")
	p.at = len(p.rest)
	if p.rest == "" {
		p.tok = end
		return
	}
	for _, s := range symbols {
		if rest, ok := strings.CutPrefix(p.rest, s.text); ok {
			p.tok, p.rest = s.tok, rest
			return
		}
	}
	if q := p.rest[0]; q == '"' || q == '\'' {
		value, rest, ok := strings.Cut(p.rest[1:], string(q))
		if !ok {
			p.err = fmt.Errorf("the text that begins with %c has no end", q)
			return
		}
		p.tok, p.value, p.rest = text, value, rest
		return
	}
	n := 0
	for n < len(p.rest) && wordByte(p.rest[n]) {
		n++
	}
	if n == 0 {
		p.err = fmt.Errorf("unexpected %q", []rune(p.rest)[0])
		return
	}
	p.tok, p.value, p.rest = word, p.rest[:n], p.rest[n:]
}

func wordByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '.' || c == '/' || c == '-'
}

func (p *parser) unexpected(want string) {
	if p.err != nil {
		return
	}
	found := "the end"
	if p.tok != end {
		found = fmt.Sprintf("%q", p.current())
	}
	p.err = fmt.Errorf("expected %s, found %s", want, found)
}

func (p *parser) current() string {
	switch p.tok {
	case word, text:
		return p.value
	}
	for _, s := range symbols {
		if s.tok == p.tok {
			return s.text
		}
	}
	return ""
}

func (p *parser) take(tok token, want string) {
	if p.err == nil && p.tok != tok {
		p.unexpected(want)
	}
	p.next()
}

func (p *parser) or(depth int) *Expr { return p.list(Or, or, func() *Expr { return p.and(depth) }) }

func (p *parser) and(depth int) *Expr {
	return p.list(And, and, func() *Expr { return p.unary(depth) })
}

func (p *parser) list(kind Kind, separator token, sub func() *Expr) *Expr {
	first := sub()
	if p.err != nil || p.tok != separator {
		return first
	}
	e := &Expr{Kind: kind, Subs: []*Expr{first}}
	for p.err == nil && p.tok == separator {
		p.next()
		e.Subs = append(e.Subs, sub())
	}
	return e
}

func (p *parser) unary(depth int) *Expr {
	if depth > maxDepth && p.err == nil {
		p.err = fmt.Errorf("it nests more than %d deep", maxDepth)
	}
	if p.err != nil {
		return nil
	}
	switch p.tok {
	case not:
		p.next()
		return Negate(p.unary(depth + 1))
	case open:
		p.next()
		e := p.or(depth + 1)
		p.take(close, ")")
		return e
	case word:
		return p.operation()
	}
	p.unexpected("a label, has(), all(), global(), ! or (")
	return nil
}

func (p *parser) operation() *Expr {
	label := p.value
	p.next()
	if p.tok == open {
		return p.function(label)
	}
	e := &Expr{Kind: Match, Label: label}
	switch {
	case p.tok == equal:
		e.Values = p.valueAfter()
	case p.tok == notEqual:
		e.Values = p.valueAfter()
		return Negate(e)
	case p.is("in"):
		e.Values = p.set()
	case p.is("not"):
		p.next()
		if !p.is("in") {
			p.unexpected("in")
		}
		e.Values = p.set()
		return Negate(e)
	case p.is("contains"):
		e.Op, e.Values = Contains, p.valueAfter()
	case p.is("starts"), p.is("ends"):
		e.Op = EndsWith
		if p.is("starts") {
			e.Op = StartsWith
		}
		p.next()
		if !p.is("with") {
			p.unexpected("with")
		}
		e.Values = p.valueAfter()
	case p.is("startswith"):
		e.Op, e.Values = StartsWith, p.valueAfter()
	case p.is("endswith"):
		e.Op, e.Values = EndsWith, p.valueAfter()
	default:
		p.unexpected("==, !=, in, not in, contains, starts with or ends with")
	}
	return e
}

func (p *parser) is(keyword string) bool { return p.tok == word && p.value == keyword }

func (p *parser) function(name string) *Expr {
	p.next()
	var e *Expr
	switch name {
	case "has":
		e = &Expr{Kind: Match, Op: Has, Label: p.value}
		p.take(word, "a label")
	case "all":
		e = &Expr{Kind: All}
	case "global":
		e = &Expr{Kind: Global}
	default:
		if p.err == nil {
			p.err = fmt.Errorf("there is no function %q: use has(), all() or global()", name)
		}
	}
	p.take(close, ")")
	return e
}

// valueAfter is the one value after the operator.
func (p *parser) valueAfter() []string {
	p.next()
	value := p.value
	p.take(text, "a value in quotes")
	return []string{value}
}

func (p *parser) set() []string {
	p.next()
	p.take(openBrace, "{")
	values := []string{}
	for p.err == nil && p.tok == text {
		values = append(values, p.value)
		p.next()
		if p.tok != comma {
			break
		}
		p.next()
	}
	p.take(closeBrace, "} or a value in quotes")
	return values
}
