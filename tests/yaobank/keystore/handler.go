package keystore

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// maxBody bounds one request's form. Values of a bank account are short.
const maxBody = 64 << 10

const keysPrefix = "/v2/keys"

// Handler serves the store: /v2/keys/..., /version and /health.
func Handler(s *Store) http.Handler {
	// Not a ServeMux: it would redirect unclean paths, and a redirect of a PUT
	// loses its body in many clients. parseKey cleans instead.
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == keysPrefix || strings.HasPrefix(r.URL.Path, keysPrefix+"/"):
			serveKeys(w, r, s)
		case r.URL.Path == "/health":
			readOnly(w, r, map[string]string{"health": "true"})
		case r.URL.Path == "/version":
			readOnly(w, r, map[string]string{"etcdserver": "2.3.0+yaobank", "etcdcluster": "2.3.0"})
		default:
			http.NotFound(w, r)
		}
	})
}

func readOnly(w http.ResponseWriter, r *http.Request, answer any) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		notAllowed(w, "GET, HEAD")
		return
	}
	write(w, http.StatusOK, answer)
}

func notAllowed(w http.ResponseWriter, allow string) {
	w.Header().Set("Allow", allow)
	http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
}

func write(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The status is sent; a client that went away is not ours to answer.
	_ = json.NewEncoder(w).Encode(answer)
}

func serveKeys(w http.ResponseWriter, r *http.Request, s *Store) {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodDelete:
	default:
		notAllowed(w, "GET, HEAD, PUT, POST, DELETE")
		return
	}
	event, err := apply(w, r, s)
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			e = newError(CodeInvalidForm, err.Error(), s.Index())
		}
		w.Header().Set("X-Etcd-Index", strconv.FormatUint(e.Index, 10))
		write(w, e.status(), e)
		return
	}
	// The index of a write's own event, so that it cannot be a later one.
	index := event.Node.ModifiedIndex
	if event.Action == "get" {
		index = s.Index()
	}
	w.Header().Set("X-Etcd-Index", strconv.FormatUint(index, 10))
	status := http.StatusOK
	if event.created {
		status = http.StatusCreated
	}
	write(w, status, event)
}

// apply carries out one request on the key space.
func apply(w http.ResponseWriter, r *http.Request, s *Store) (*Event, error) {
	key, err := parseKey(strings.TrimPrefix(r.URL.Path, keysPrefix))
	if err != nil {
		return nil, newError(CodeInvalidField, err.Error(), s.Index())
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if err := r.ParseForm(); err != nil {
		return nil, newError(CodeInvalidForm, err.Error(), s.Index())
	}
	f := form{values: r.Form, index: s.Index}
	for _, name := range []string{"ttl", "wait", "waitIndex", "stream", "refresh"} {
		if f.values.Has(name) {
			return nil, newError(CodeInvalidField, name+" is not supported by this store", s.Index())
		}
	}
	dir, recursive, _ := f.flag("dir"), f.flag("recursive"), f.flag("sorted")
	pre := f.precondition()
	if f.err != nil {
		return nil, f.err
	}
	switch r.Method {
	case http.MethodPut:
		return s.Set(key, f.values.Get("value"), dir, pre)
	case http.MethodPost:
		return s.Append(key, f.values.Get("value"))
	case http.MethodDelete:
		return s.Delete(key, dir, recursive, pre)
	default:
		return s.Read(key, recursive)
	}
}

// form reads typed fields and keeps the first error.
type form struct {
	values url.Values
	index  func() uint64
	err    error
}

func (f *form) fail(code int, cause string) {
	if f.err == nil {
		f.err = newError(code, cause, f.index())
	}
}

func (f *form) flag(name string) bool {
	if !f.values.Has(name) {
		return false
	}
	b, err := strconv.ParseBool(f.values.Get(name))
	if err != nil {
		f.fail(CodeInvalidField, "invalid value for "+strconv.Quote(name))
	}
	return b
}

func (f *form) precondition() Precondition {
	var pre Precondition
	if f.values.Has("prevExist") {
		exist := f.flag("prevExist")
		pre.Exist = &exist
	}
	if f.values.Has("prevValue") {
		value := f.values.Get("prevValue")
		if value == "" {
			f.fail(CodePrevValue, "prevValue is empty")
		}
		pre.Value = &value
	}
	if f.values.Has("prevIndex") {
		index, err := strconv.ParseUint(f.values.Get("prevIndex"), 10, 64)
		if err != nil || index == 0 {
			f.fail(CodeIndexNaN, "prevIndex must be a positive number")
		}
		pre.Index = index
	}
	return pre
}
