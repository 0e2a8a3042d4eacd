// Package keystore is a small in-memory key-value store that speaks the key
// space part of etcd's v2 HTTP API, so that the yaobank demo has a database
// whose whole content one careless GET reveals, as in the course it follows.
//
// It owns the tree, its indexes and the HTTP form of both. It does not
// replicate, persist, watch or expire; requests for those are refused by name.
package keystore

import (
	"fmt"
	"path"
	"sort"
	"strings"
	"sync"
)

// maxNodes bounds the store's memory together with the handler's limit on one
// request's size.
const maxNodes = 4096

// Node is one key as the API shows it.
type Node struct {
	// Key is empty for the root, as in etcd.
	Key   string  `json:"key,omitempty"`
	Dir   bool    `json:"dir,omitempty"`
	Value *string `json:"value,omitempty"`
	Nodes []*Node `json:"nodes,omitempty"`
	// ModifiedIndex and CreatedIndex count the store's changes; 0 only for the root.
	ModifiedIndex uint64 `json:"modifiedIndex,omitempty"`
	CreatedIndex  uint64 `json:"createdIndex,omitempty"`
}

// Event is the outcome of one operation.
type Event struct {
	Action   string `json:"action"`
	Node     *Node  `json:"node"`
	PrevNode *Node  `json:"prevNode,omitempty"`

	created bool
}

// Precondition is what a write asks of the key before it happens. The zero
// value asks nothing.
type Precondition struct {
	Exist *bool
	Value *string
	Index uint64 // 0 asks nothing: no key has that index
}

func (p Precondition) compares() bool { return p.Value != nil || p.Index != 0 }

// entry is a node of the tree; children is nil exactly for files.
type entry struct {
	value             string
	children          map[string]*entry
	created, modified uint64
}

func (e *entry) dir() bool { return e.children != nil }

// Store is safe for concurrent use. Make one with New.
type Store struct {
	mu    sync.RWMutex
	root  *entry
	index uint64
	nodes int
}

// New returns an empty store.
func New() *Store {
	return &Store{root: &entry{children: map[string]*entry{}}}
}

// Index is the number of changes so far.
func (s *Store) Index() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.index
}

// Read returns a key; a directory with its children, or with everything below
// it if recursive. Children are sorted by key: that is a valid answer whether
// or not the client asked for order.
func (s *Store) Read(key string, recursive bool) (*Event, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, err := s.find(key)
	if err != nil {
		return nil, err
	}
	depth := 1
	if recursive {
		depth = maxKeyDepth + 1
	}
	return &Event{Action: "get", Node: show(key, e, depth)}, nil
}

// Set writes a value, or makes a directory if dir.
func (s *Store) Set(key, value string, dir bool, pre Precondition) (*Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if key == "/" {
		return nil, newError(CodeRootReadOnly, "/", s.index)
	}
	parent, name, err := s.parent(key)
	if err != nil {
		return nil, err
	}
	var old *entry
	if parent != nil {
		old = parent.children[name]
	}
	switch {
	case pre.Exist != nil && !*pre.Exist && old != nil:
		return nil, newError(CodeNodeExist, key, s.index)
	case old == nil && (pre.compares() || pre.Exist != nil && *pre.Exist):
		return nil, newError(CodeKeyNotFound, key, s.index)
	case old != nil && old.dir():
		return nil, newError(CodeNotFile, key, s.index)
	case old != nil && dir && pre.compares():
		return nil, newError(CodeNotFile, key, s.index)
	}
	if err := s.compare(old, pre); err != nil {
		return nil, err
	}
	event := &Event{Action: "set", created: old == nil}
	switch {
	case pre.compares():
		event.Action = "compareAndSwap"
	case pre.Exist != nil && *pre.Exist:
		event.Action = "update"
	case pre.Exist != nil:
		event.Action = "create"
	}
	if err := s.room(key); err != nil {
		return nil, err
	}
	if old != nil {
		event.PrevNode = show(key, old, 0)
	}
	s.index++
	written := s.put(key, value, dir)
	if old != nil && event.Action != "set" {
		written.created = old.created
	}
	event.Node = show(key, written, 0)
	return event, nil
}

// Append writes a value under a new name in a directory; names sort in the
// order of writing.
func (s *Store) Append(dirKey, value string) (*Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := path.Join(dirKey, fmt.Sprintf("%020d", s.index+1))
	parent, name, err := s.parent(key)
	if err != nil {
		return nil, err
	}
	if parent != nil && parent.children[name] != nil {
		return nil, newError(CodeNodeExist, key, s.index)
	}
	if err := s.room(key); err != nil {
		return nil, err
	}
	s.index++
	return &Event{Action: "create", Node: show(key, s.put(key, value, false), 0), created: true}, nil
}

// Delete removes a file; a directory only if dir (and empty) or recursive.
func (s *Store) Delete(key string, dir, recursive bool, pre Precondition) (*Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if key == "/" {
		return nil, newError(CodeRootReadOnly, "/", s.index)
	}
	e, err := s.find(key)
	if err != nil {
		return nil, err
	}
	if e.dir() {
		switch {
		case pre.compares(), !dir && !recursive:
			return nil, newError(CodeNotFile, key, s.index)
		case len(e.children) > 0 && !recursive:
			return nil, newError(CodeDirNotEmpty, key, s.index)
		}
	}
	if err := s.compare(e, pre); err != nil {
		return nil, err
	}
	action := "delete"
	if pre.compares() {
		action = "compareAndDelete"
	}
	s.index++
	parent, name, err := s.parent(key)
	if err != nil {
		return nil, err
	}
	delete(parent.children, name)
	s.nodes -= count(e)
	gone := &Node{Key: key, Dir: e.dir(), ModifiedIndex: s.index, CreatedIndex: e.created}
	return &Event{Action: action, Node: gone, PrevNode: show(key, e, 0)}, nil
}

// compare checks the value and index a write insists on. Caller holds mu.
func (s *Store) compare(old *entry, pre Precondition) error {
	if old == nil || !pre.compares() {
		return nil
	}
	var failed []string
	if pre.Value != nil && *pre.Value != old.value {
		failed = append(failed, fmt.Sprintf("[%s != %s]", *pre.Value, old.value))
	}
	if pre.Index != 0 && pre.Index != old.modified {
		failed = append(failed, fmt.Sprintf("[%d != %d]", pre.Index, old.modified))
	}
	if len(failed) > 0 {
		return newError(CodeTestFailed, strings.Join(failed, " "), s.index)
	}
	return nil
}

// find walks to an existing key. Caller holds mu.
func (s *Store) find(key string) (*entry, error) {
	e, walked := s.root, "/"
	for _, name := range segments(key) {
		walked = path.Join(walked, name)
		if !e.dir() {
			return nil, newError(CodeKeyNotFound, key, s.index)
		}
		next := e.children[name]
		if next == nil {
			return nil, newError(CodeKeyNotFound, walked, s.index)
		}
		e = next
	}
	return e, nil
}

// parent walks to the directory that holds a key and returns nil where it does
// not exist yet; an ancestor that is a file is an error. Caller holds mu.
func (s *Store) parent(key string) (*entry, string, error) {
	dirs, name := path.Split(key)
	e, walked := s.root, "/"
	for _, step := range segments(path.Clean(dirs)) {
		walked = path.Join(walked, step)
		e = e.children[step]
		if e == nil {
			return nil, name, nil
		}
		if !e.dir() {
			return nil, "", newError(CodeNotDir, walked, s.index)
		}
	}
	return e, name, nil
}

// room refuses a write that could take the store over its bound. Caller holds mu.
func (s *Store) room(key string) error {
	if s.nodes+len(segments(key)) > maxNodes {
		return newError(CodeStoreFull, fmt.Sprintf("the store holds at most %d nodes", maxNodes), s.index)
	}
	return nil
}

// put replaces or makes a node at the current index, with the directories
// above it. Caller holds mu for writing and has checked the way.
func (s *Store) put(key, value string, dir bool) *entry {
	e, names := s.root, segments(key)
	for i, name := range names {
		next := e.children[name]
		last := i == len(names)-1
		if next == nil || last {
			if next == nil {
				s.nodes++
			}
			next = &entry{created: s.index, modified: s.index}
			if last && !dir {
				next.value = value
			} else {
				next.children = map[string]*entry{}
			}
			e.children[name] = next
		}
		e = next
	}
	return e
}

func count(e *entry) int {
	n := 1
	for _, child := range e.children {
		n += count(child)
	}
	return n
}

// show copies an entry into the form of the API, depth levels of children deep.
func show(key string, e *entry, depth int) *Node {
	node := &Node{Key: key, Dir: e.dir(), ModifiedIndex: e.modified, CreatedIndex: e.created}
	if key == "/" {
		node.Key = ""
	}
	if !e.dir() {
		value := e.value
		node.Value = &value
		return node
	}
	if depth == 0 {
		return node
	}
	for name, child := range e.children {
		if !hidden(name) {
			node.Nodes = append(node.Nodes, show(path.Join(key, name), child, depth-1))
		}
	}
	sort.Slice(node.Nodes, func(i, j int) bool { return node.Nodes[i].Key < node.Nodes[j].Key })
	return node
}
