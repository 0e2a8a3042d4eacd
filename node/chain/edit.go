package chain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

// Edits work on the text, not on decoded values: only the bytes of our own
// entry are ever written, so that order, spelling, numbers and unknown fields of
// other people stay as they are.

// minVersion is the first version of the specification with chains as our
// plugin speaks them.
const minVersion = "0.3.1"

// list is where things are in the text of a network configuration list.
type list struct {
	version string
	plugins []element
	ours    []int // indices of our entries
}

// element is text[start:end].
type element struct {
	start, end int
	kind       string // its type
}

// parseList finds the plugins of a list. It is strict: what it does not
// understand is an error, and the file is left alone.
func parseList(text []byte) (list, error) {
	var l list
	name, found := "", false
	err := walkObject(text, func(key string, d *json.Decoder) error {
		switch key {
		case "cniVersion":
			return d.Decode(&l.version)
		case "name":
			return d.Decode(&name)
		case "plugins":
			if found {
				return errors.New("plugins is there twice")
			}
			found = true
			return l.parsePlugins(text, d)
		}
		var other json.RawMessage
		return d.Decode(&other)
	})
	if err != nil {
		return l, err
	}
	if name == "" {
		return l, errors.New("it has no name")
	}
	if len(l.plugins) == 0 {
		return l, errors.New("it has no plugins")
	}
	if len(l.ours) == len(l.plugins) {
		return l, errors.New("it has no plugin but ours")
	}
	return l, nil
}

func (l *list) parsePlugins(text []byte, d *json.Decoder) error {
	if token, err := d.Token(); err != nil || token != json.Delim('[') {
		return fmt.Errorf("plugins is not a list")
	}
	for d.More() {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return err
		}
		var plugin struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(raw, &plugin); err != nil || plugin.Type == "" {
			return fmt.Errorf("plugin %d has no type", len(l.plugins))
		}
		end := int(d.InputOffset())
		e := element{start: end - len(raw), end: end, kind: plugin.Type}
		if e.start < 0 || !bytes.Equal(text[e.start:e.end], raw) {
			return fmt.Errorf("plugin %d can't be found in the text", len(l.plugins))
		}
		if plugin.Type == names.CNIType {
			l.ours = append(l.ours, len(l.plugins))
		}
		l.plugins = append(l.plugins, e)
	}
	_, err := d.Token()
	return err
}

// walkObject calls field for each key of the one object that text is; field
// must read the value.
func walkObject(text []byte, field func(key string, d *json.Decoder) error) error {
	d := json.NewDecoder(bytes.NewReader(text))
	if token, err := d.Token(); err != nil || token != json.Delim('{') {
		return errors.New("it is not a JSON object")
	}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return err
		}
		key, ok := token.(string)
		if !ok {
			return fmt.Errorf("%v is not a key", token)
		}
		if err := field(key, d); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	if _, err := d.Token(); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON object")
	}
	return nil
}

// insert returns text with exactly one entry of ours that says what entry
// says, at the end unless there is one already.
func insert(text, entry []byte) ([]byte, error) {
	l, err := parseList(text)
	if err != nil {
		return nil, err
	}
	if !chainable(l.version) {
		return nil, fmt.Errorf("its cniVersion %q is older than %s, which chained plugins need; set cniVersion", l.version, minVersion)
	}
	if len(l.ours) == 0 {
		last := len(l.plugins) - 1
		return splice(text, l.plugins[last].end, l.plugins[last].end, append([]byte(","+l.gap(text, last)), entry...)), nil
	}
	for i := len(l.ours) - 1; i > 0; i-- {
		text = l.cut(text, l.ours[i])
	}
	e := l.plugins[l.ours[0]]
	if sameJSON(text[e.start:e.end], entry) {
		return text, nil
	}
	return splice(text, e.start, e.end, entry), nil
}

// remove returns text without our entries.
func remove(text []byte) ([]byte, error) {
	l, err := parseList(text)
	if err != nil {
		return nil, err
	}
	for i := len(l.ours) - 1; i >= 0; i-- {
		text = l.cut(text, l.ours[i])
	}
	return text, nil
}

// gap is the white space before an element: what the author puts between a
// comma and a plugin.
func (l *list) gap(text []byte, i int) string {
	start := l.plugins[i].start
	from := start
	for from > 0 && strings.ContainsRune(" \t\r\n", rune(text[from-1])) {
		from--
	}
	return string(text[from:start])
}

// cut takes out an element with the comma that parted it from its neighbour:
// the one before it if there is one, which undoes insert to the byte. Elements
// after i must not have been changed before.
func (l *list) cut(text []byte, i int) []byte {
	if i > 0 {
		return splice(text, l.plugins[i-1].end, l.plugins[i].end, nil)
	}
	if i+1 < len(l.plugins) {
		return splice(text, l.plugins[i].start, l.plugins[i+1].start, nil)
	}
	return splice(text, l.plugins[i].start, l.plugins[i].end, nil)
}

func splice(text []byte, from, to int, with []byte) []byte {
	out := make([]byte, 0, len(text)-(to-from)+len(with))
	out = append(out, text[:from]...)
	out = append(out, with...)
	return append(out, text[to:]...)
}

// single is what a configuration of one plugin says.
type single struct{ version, name, kind string }

func parseSingle(text []byte) (single, error) {
	var s single
	err := walkObject(text, func(key string, d *json.Decoder) error {
		switch key {
		case "cniVersion":
			return d.Decode(&s.version)
		case "name":
			return d.Decode(&s.name)
		case "type":
			return d.Decode(&s.kind)
		}
		var other json.RawMessage
		return d.Decode(&other)
	})
	if err == nil && (s.kind == "" || s.name == "") {
		err = errors.New("it has no type or no name")
	}
	return s, err
}

// convert makes a list of a single plugin's configuration, whose text it keeps,
// and our entry.
func convert(text, entry []byte) ([]byte, error) {
	s, err := parseSingle(text)
	if err != nil {
		return nil, err
	}
	if !chainable(s.version) {
		// A configuration without a version, or with an early one: its plugin
		// knows results of 0.3.1, too, unless it is older than 2017.
		s.version = minVersion
	}
	version, err := json.Marshal(s.version)
	if err != nil {
		return nil, err
	}
	name, err := json.Marshal(s.name)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "{\n  \"cniVersion\": %s,\n  \"name\": %s,\n  \"plugins\": [\n    %s,\n    %s\n  ]\n}\n",
		version, name, bytes.TrimSpace(text), entry), nil
}

// reconvert puts a newer configuration of the primary plugin into a list that
// convert made, and keeps what else is in it.
func reconvert(list, text, entry []byte) ([]byte, error) {
	l, err := parseList(list)
	if err != nil || l.plugins[0].kind == names.CNIType {
		return convert(text, entry)
	}
	if _, err := parseSingle(text); err != nil {
		return nil, err
	}
	return insert(splice(list, l.plugins[0].start, l.plugins[0].end, bytes.TrimSpace(text)), entry)
}

// chainable reports whether a version of the specification is known to chain
// results that our plugin reads.
func chainable(version string) bool {
	switch version {
	case "", "0.1.0", "0.2.0", "0.3.0":
		return false
	}
	return true
}

func sameJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}
