package policy

import (
	"regexp/syntax"
	"slices"
	"strings"
)

// deepest is how many segments of a path are looked at; deeper paths are filed
// by their beginning.
const deepest = 12

// Nodes of the tree of paths. What has no slash at its beginning is "*".
const (
	rootNode = iota
	slashless
)

// edge is a step in the tree of paths: from a node along one segment.
type edge struct {
	from    uint32
	segment string
}

// pathNode is what is filed at one place of the tree: paths that end here, and
// all that begin so.
type pathNode struct {
	exact, under uint32
	variable     uint32 // the node behind a template's variable; 0 for none
}

// pathColumn files rules by paths, segment by segment.
type pathColumn struct {
	used  bool
	any   dense
	nodes []pathNode
	edges map[edge]uint32
}

func (c *pathColumn) find(q *search, path string) {
	if !c.used {
		return
	}
	f := q.column(&c.any)
	if path == "" || path[0] != '/' {
		if to, ok := c.edges[edge{slashless, path}]; ok {
			f.add(c.nodes[to].exact)
		}
	} else {
		c.walk(f, rootNode, path[1:])
	}
	q.keep()
}

// walk finds what is filed below a node for the rest of a path.
func (c *pathColumn) walk(f *found, node uint32, rest string) {
	for {
		segment, tail, more := cutSegment(rest)
		if next := c.nodes[node].variable; next != 0 && segment != "" {
			c.arrive(f, next, more)
			if more {
				c.walk(f, next, tail)
			}
		}
		next, ok := c.edges[edge{node, segment}]
		if !ok {
			return
		}
		c.arrive(f, next, more)
		if !more {
			return
		}
		node, rest = next, tail
	}
}

func (c *pathColumn) arrive(f *found, node uint32, more bool) {
	f.add(c.nodes[node].under)
	if !more {
		f.add(c.nodes[node].exact)
	}
}

type pathBuilder struct{ pathColumn }

func newPathBuilder(n int) pathBuilder {
	return pathBuilder{pathColumn{any: newDense(n), nodes: make([]pathNode, 2), edges: map[edge]uint32{}}}
}

func (b *pathBuilder) freeze(n int, at []uint32) pathColumn {
	c := b.pathColumn
	c.used = len(c.nodes) > 2 && worthwhile(&c.any, n)
	if !c.used {
		return pathColumn{}
	}
	c.nodes = slices.Clip(c.nodes)
	for i := range c.nodes {
		node := &c.nodes[i]
		node.exact, node.under = place(at, node.exact), place(at, node.under)
	}
	return c
}

// place is where a list was written; 0 stays none.
func place(at []uint32, list uint32) uint32 {
	if list == 0 {
		return 0
	}
	return at[list]
}

// pathsFiled reports whether each path of the match has a place in the tree.
func pathsFiled(m *HTTPMatch) bool {
	if len(m.Paths) == 0 {
		return len(m.GRPC) > 0
	}
	return !slices.ContainsFunc(m.Paths, func(p PathMatch) bool {
		switch p.Type {
		case PathPrefix:
			return strings.TrimRight(p.Value, "/") == ""
		case PathRegex:
			return regexPrefix(p.Value) == ""
		}
		return false
	})
}

// regexPrefix is whole segments with which every path begins that the
// expression matches; empty when none are known.
func regexPrefix(text string) string {
	re, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return ""
	}
	literal := literalPrefix(re)
	cut := strings.LastIndexByte(literal, '/')
	if cut < 1 || literal[0] != '/' {
		return ""
	}
	return literal[:cut]
}

func literalPrefix(re *syntax.Regexp) string {
	switch re.Op {
	case syntax.OpLiteral:
		if re.Flags&syntax.FoldCase == 0 {
			return string(re.Rune)
		}
	case syntax.OpCapture:
		return literalPrefix(re.Sub[0])
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			if sub.Op != syntax.OpBeginText {
				return literalPrefix(sub)
			}
		}
	}
	return ""
}

// add files the rule under the paths of the match.
func (b *pathBuilder) add(all *builder, number int, m *HTTPMatch) {
	for i := range m.Paths {
		switch p := &m.Paths[i]; {
		case p.Type == PathExact && p.Value[0] != '/':
			node := b.step(slashless, p.Value)
			all.file(&b.nodes[node].exact, number)
		case p.Type == PathExact:
			b.file(all, number, p.Value[1:], false, false)
		case p.Type == PathTemplate:
			b.file(all, number, p.Value[1:], true, false)
		case p.Type == PathPrefix:
			b.file(all, number, strings.TrimRight(p.Value, "/")[1:], false, true)
		default:
			b.file(all, number, regexPrefix(p.Value)[1:], false, true)
		}
	}
	if len(m.Paths) > 0 {
		return
	}
	for i := range m.GRPC {
		node := uint32(rootNode)
		for _, name := range []string{m.GRPC[i].Service, m.GRPC[i].Method} {
			if name == "" {
				node = b.anySegment(node)
			} else {
				node = b.step(node, name)
			}
		}
		all.file(&b.nodes[node].exact, number)
	}
}

// file puts the rule at the end of the path, which comes without its first
// slash, or at the deepest segment that is looked at.
func (b *pathBuilder) file(all *builder, number int, path string, template, under bool) {
	node := uint32(rootNode)
	for depth := 1; ; depth++ {
		segment, tail, more := cutSegment(path)
		if template && isVariable(segment) {
			node = b.anySegment(node)
		} else {
			node = b.step(node, segment)
		}
		if !more {
			break
		}
		if depth == deepest {
			under = true
			break
		}
		path = tail
	}
	if under {
		all.file(&b.nodes[node].under, number)
	} else {
		all.file(&b.nodes[node].exact, number)
	}
}

func (b *pathBuilder) step(from uint32, segment string) uint32 {
	e := edge{from, segment}
	to, ok := b.edges[e]
	if !ok {
		to = b.node()
		b.edges[e] = to
	}
	return to
}

func (b *pathBuilder) anySegment(from uint32) uint32 {
	if b.nodes[from].variable == 0 {
		to := b.node()
		b.nodes[from].variable = to
	}
	return b.nodes[from].variable
}

func (b *pathBuilder) node() uint32 {
	b.nodes = append(b.nodes, pathNode{})
	return uint32(len(b.nodes) - 1)
}

// valueColumn files rules by a value that is compared as a whole.
type valueColumn struct {
	used   bool
	any    dense
	values map[string]uint32
}

func (c *valueColumn) find(q *search, value string) {
	if !c.used {
		return
	}
	q.column(&c.any).add(c.values[value])
	q.keep()
}

type valueBuilder struct{ valueColumn }

func newValueBuilder(n int) valueBuilder {
	return valueBuilder{valueColumn{any: newDense(n), values: map[string]uint32{}}}
}

func (b *valueBuilder) add(all *builder, number int, value string) {
	fileUnder(all, b.values, value, number)
}

func (b *valueBuilder) freeze(n int, at []uint32) valueColumn {
	c := b.valueColumn
	c.used = len(c.values) > 0 && worthwhile(&c.any, n)
	if !c.used {
		return valueColumn{}
	}
	placeAll(c.values, at)
	return c
}

// hostColumn files rules by hosts in lower case: whole ones, and what follows
// the "*." of the others.
type hostColumn struct {
	valueColumn
	wild map[string]uint32
}

func (c *hostColumn) find(q *search, host string) {
	if !c.used || hasUpper(host) {
		return // hosts come in lower case; another is compared with every rule
	}
	f := q.column(&c.any)
	f.add(c.values[host])
	for i := 1; i < len(host); i++ {
		if host[i] == '.' {
			f.add(c.wild[host[i+1:]])
		}
	}
	q.keep()
}

func hasUpper(s string) bool {
	for i := range len(s) {
		if s[i] != lower(s[i]) {
			return true
		}
	}
	return false
}

// lowerASCII folds as equalFold does: ASCII letters and no others.
func lowerASCII(s string) string {
	b := []byte(s)
	for i := range b {
		b[i] = lower(b[i])
	}
	return string(b)
}

type hostBuilder struct{ hostColumn }

func newHostBuilder(n int) hostBuilder {
	return hostBuilder{hostColumn{newValueBuilder(n).valueColumn, map[string]uint32{}}}
}

func (b *hostBuilder) add(all *builder, number int, host string) {
	values, host := b.values, lowerASCII(host)
	if rest, wild := strings.CutPrefix(host, "*."); wild {
		values, host = b.wild, rest
	}
	fileUnder(all, values, host, number)
}

func (b *hostBuilder) freeze(n int, at []uint32) hostColumn {
	c := b.hostColumn
	c.used = len(c.values)+len(c.wild) > 0 && worthwhile(&c.any, n)
	if !c.used {
		return hostColumn{}
	}
	placeAll(c.values, at)
	placeAll(c.wild, at)
	return c
}
