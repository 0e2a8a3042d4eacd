package policy

import (
	"fmt"
	"regexp"
	"strings"
)

// maxRegex bounds the length of a path's regular expression. RE2 expressions
// take time linear in the path, times the expression's size.
const maxRegex = 512

// PathMatchType says how a path is compared.
type PathMatchType uint8

// PathExact compares the whole path; PathPrefix compares whole segments;
// PathTemplate compares segment by segment, "{name}" standing for one that is
// not empty; PathRegex compares the whole path with an RE2 expression.
const (
	PathExact PathMatchType = iota
	PathPrefix
	PathTemplate
	PathRegex
)

// PathMatch compares the normalised path of a request, without its query.
type PathMatch struct {
	Type  PathMatchType
	Value string
	// Regex is Value compiled, for PathRegex only: see RegexPath. Without it, or
	// with another's, the match cannot be resolved.
	Regex *Regex
}

// Regex is a compiled expression for a whole path. It is immutable.
type Regex struct {
	text string
	re   *regexp.Regexp
}

// Equal reports whether both are of the same expression.
func (r *Regex) Equal(other *Regex) bool {
	return r == other || r != nil && other != nil && r.text == other.text
}

// RegexPath is a match by an RE2 expression, compiled here and nowhere on the
// path of requests. Anchors are not needed: the whole path must match.
func RegexPath(text string) (PathMatch, error) {
	if len(text) > maxRegex {
		return PathMatch{}, fmt.Errorf("the expression is longer than %d bytes", maxRegex)
	}
	// First alone, so that it cannot close the group below.
	if _, err := regexp.Compile(text); err != nil {
		return PathMatch{}, fmt.Errorf("%q is no RE2 expression: %w", text, err)
	}
	re, err := regexp.Compile(`\A(?:` + text + `)\z`)
	if err != nil {
		return PathMatch{}, fmt.Errorf("%q is no RE2 expression: %w", text, err)
	}
	return PathMatch{Type: PathRegex, Value: text, Regex: &Regex{text: text, re: re}}, nil
}

// Problem says why the match cannot be resolved; empty when it can.
func (m *PathMatch) Problem() string {
	switch {
	case m.Type > PathRegex:
		return "the path's type is not known"
	case m.Type == PathRegex && (m.Regex == nil || m.Regex.text != m.Value):
		return "the expression is not compiled"
	case m.Type == PathRegex:
		return ""
	case m.Regex != nil:
		return "only a regular expression has a compiled one"
	case m.Value == "*" && m.Type == PathExact: // OPTIONS *
		return ""
	case !strings.HasPrefix(m.Value, "/"):
		return "a path begins with '/'"
	case m.Type == PathTemplate:
		return templateProblem(m.Value)
	}
	return ""
}

// templateProblem looks at each segment: it is literal, or "{name}" as a whole.
func templateProblem(template string) string {
	for rest := template[1:]; ; {
		segment, more, found := cutSegment(rest)
		if !isVariable(segment) && strings.ContainsAny(segment, "{}") {
			return "a variable of a template is a whole segment, as in \"/users/{id}\""
		}
		if !found {
			return ""
		}
		rest = more
	}
}

// cutSegment is strings.Cut by '/'.
func cutSegment(path string) (segment, rest string, found bool) {
	if i := strings.IndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:], true
	}
	return path, "", false
}

// isVariable: "{name}", of letters, digits and underscores.
func isVariable(segment string) bool {
	if len(segment) < 3 || segment[0] != '{' || segment[len(segment)-1] != '}' {
		return false
	}
	for _, c := range []byte(segment[1 : len(segment)-1]) {
		if c != '_' && (c < '0' || c > '9') && (lower(c) < 'a' || lower(c) > 'z') {
			return false
		}
	}
	return true
}

// matches compares the path with the match. A prefix ends at a segment's border
// and its own trailing slashes do not matter: "/a" and "/a/" match "/a", "/a/"
// and "/a/b", but not "/ab".
func (m *PathMatch) matches(path string, deny bool) bool {
	if m.Problem() != "" {
		return deny
	}
	switch m.Type {
	case PathExact:
		return path == m.Value
	case PathTemplate:
		return matchTemplate(m.Value, path)
	case PathRegex:
		return m.Regex.re.MatchString(path)
	}
	prefix := strings.TrimRight(m.Value, "/")
	if len(path) < len(prefix) || path[:len(prefix)] != prefix {
		return false
	}
	rest := path[len(prefix):]
	if rest == "" {
		return prefix != ""
	}
	return rest[0] == '/'
}

func matchTemplate(template, path string) bool {
	if path == "" || path[0] != '/' {
		return false
	}
	template, path = template[1:], path[1:]
	for {
		want, moreWant, wantMore := cutSegment(template)
		have, moreHave, haveMore := cutSegment(path)
		if wantMore != haveMore {
			return false
		}
		if isVariable(want) {
			if have == "" {
				return false
			}
		} else if want != have {
			return false
		}
		if !wantMore {
			return true
		}
		template, path = moreWant, moreHave
	}
}

// String is the match as users would say it.
func (m PathMatch) String() string {
	switch m.Type {
	case PathPrefix:
		return "under " + m.Value
	case PathTemplate:
		return "like " + m.Value
	case PathRegex:
		return "matching " + m.Value
	}
	return m.Value
}
