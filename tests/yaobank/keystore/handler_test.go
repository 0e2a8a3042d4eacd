package keystore

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// step is one request and the whole of its answer.
type step struct {
	method, path, form string
	status             int
	index              string
	body               string
}

func run(t *testing.T, server *httptest.Server, steps []step) {
	t.Helper()
	for i, s := range steps {
		request, err := http.NewRequestWithContext(t.Context(), s.method, server.URL+s.path, strings.NewReader(s.form))
		if err != nil {
			t.Fatal(err)
		}
		if s.form != "" {
			request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		response, err := server.Client().Do(request)
		if err != nil {
			t.Fatalf("step %d, %s %s: %v", i, s.method, s.path, err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		got := step{s.method, s.path, s.form, response.StatusCode, response.Header.Get("X-Etcd-Index"), strings.TrimSpace(string(body))}
		if diff := cmp.Diff(s, got, cmp.AllowUnexported(step{})); diff != "" {
			t.Fatalf("step %d, %s %s (-want +got):\n%s", i, s.method, s.path, diff)
		}
	}
}

func TestKeys(t *testing.T) {
	for name, steps := range map[string][]step{
		"empty root": {
			{"GET", "/v2/keys", "", 200, "0", `{"action":"get","node":{"dir":true}}`},
			{"GET", "/v2/keys/?recursive=true", "", 200, "0", `{"action":"get","node":{"dir":true}}`},
		},
		"set, get, overwrite": {
			{"PUT", "/v2/keys/a", "value=one", 201, "1", `{"action":"set","node":{"key":"/a","value":"one","modifiedIndex":1,"createdIndex":1}}`},
			{"GET", "/v2/keys/a", "", 200, "1", `{"action":"get","node":{"key":"/a","value":"one","modifiedIndex":1,"createdIndex":1}}`},
			{"PUT", "/v2/keys/a?value=two", "", 200, "2", `{"action":"set","node":{"key":"/a","value":"two","modifiedIndex":2,"createdIndex":2},"prevNode":{"key":"/a","value":"one","modifiedIndex":1,"createdIndex":1}}`},
			{"PUT", "/v2/keys/a", "value=", 200, "3", `{"action":"set","node":{"key":"/a","value":"","modifiedIndex":3,"createdIndex":3},"prevNode":{"key":"/a","value":"two","modifiedIndex":2,"createdIndex":2}}`},
		},
		"directories": {
			{"PUT", "/v2/keys/d/z", "value=1", 201, "1", `{"action":"set","node":{"key":"/d/z","value":"1","modifiedIndex":1,"createdIndex":1}}`},
			{"PUT", "/v2/keys/d/a/x", "value=2", 201, "2", `{"action":"set","node":{"key":"/d/a/x","value":"2","modifiedIndex":2,"createdIndex":2}}`},
			{"PUT", "/v2/keys/d/_secret", "value=3", 201, "3", `{"action":"set","node":{"key":"/d/_secret","value":"3","modifiedIndex":3,"createdIndex":3}}`},
			{"GET", "/v2/keys/d", "", 200, "3", `{"action":"get","node":{"key":"/d","dir":true,"nodes":[{"key":"/d/a","dir":true,"modifiedIndex":2,"createdIndex":2},{"key":"/d/z","value":"1","modifiedIndex":1,"createdIndex":1}],"modifiedIndex":1,"createdIndex":1}}`},
			{"GET", "/v2/keys/?recursive=true&sorted=true", "", 200, "3", `{"action":"get","node":{"dir":true,"nodes":[{"key":"/d","dir":true,"nodes":[{"key":"/d/a","dir":true,"nodes":[{"key":"/d/a/x","value":"2","modifiedIndex":2,"createdIndex":2}],"modifiedIndex":2,"createdIndex":2},{"key":"/d/z","value":"1","modifiedIndex":1,"createdIndex":1}],"modifiedIndex":1,"createdIndex":1}]}}`},
			{"GET", "/v2/keys/d/_secret", "", 200, "3", `{"action":"get","node":{"key":"/d/_secret","value":"3","modifiedIndex":3,"createdIndex":3}}`},
			{"PUT", "/v2/keys/d", "value=no", 403, "3", `{"errorCode":102,"message":"Not a file","cause":"/d","index":3}`},
			{"PUT", "/v2/keys/e", "dir=true", 201, "4", `{"action":"set","node":{"key":"/e","dir":true,"modifiedIndex":4,"createdIndex":4}}`},
			{"PUT", "/v2/keys/e", "dir=true", 403, "4", `{"errorCode":102,"message":"Not a file","cause":"/e","index":4}`},
			{"PUT", "/v2/keys/d/z/below", "value=1", 403, "4", `{"errorCode":104,"message":"Not a directory","cause":"/d/z","index":4}`},
			{"GET", "/v2/keys/d/z/below", "", 404, "4", `{"errorCode":100,"message":"Key not found","cause":"/d/z/below","index":4}`},
		},
		"in-order keys": {
			{"POST", "/v2/keys/q", "value=first", 201, "1", `{"action":"create","node":{"key":"/q/00000000000000000001","value":"first","modifiedIndex":1,"createdIndex":1}}`},
			{"POST", "/v2/keys/q", "value=second", 201, "2", `{"action":"create","node":{"key":"/q/00000000000000000002","value":"second","modifiedIndex":2,"createdIndex":2}}`},
		},
		"preconditions": {
			{"PUT", "/v2/keys/a", "value=1&prevExist=true", 404, "0", `{"errorCode":100,"message":"Key not found","cause":"/a","index":0}`},
			{"PUT", "/v2/keys/a", "value=1&prevExist=false", 201, "1", `{"action":"create","node":{"key":"/a","value":"1","modifiedIndex":1,"createdIndex":1}}`},
			{"PUT", "/v2/keys/a", "value=2&prevExist=false", 412, "1", `{"errorCode":105,"message":"Key already exists","cause":"/a","index":1}`},
			{"PUT", "/v2/keys/a", "value=2&prevExist=true", 200, "2", `{"action":"update","node":{"key":"/a","value":"2","modifiedIndex":2,"createdIndex":1},"prevNode":{"key":"/a","value":"1","modifiedIndex":1,"createdIndex":1}}`},
			{"PUT", "/v2/keys/a", "value=3&prevValue=1", 412, "2", `{"errorCode":101,"message":"Compare failed","cause":"[1 != 2]","index":2}`},
			{"PUT", "/v2/keys/a", "value=3&prevIndex=1", 412, "2", `{"errorCode":101,"message":"Compare failed","cause":"[1 != 2]","index":2}`},
			{"PUT", "/v2/keys/a", "value=3&prevValue=2&prevIndex=2", 200, "3", `{"action":"compareAndSwap","node":{"key":"/a","value":"3","modifiedIndex":3,"createdIndex":1},"prevNode":{"key":"/a","value":"2","modifiedIndex":2,"createdIndex":1}}`},
			{"DELETE", "/v2/keys/a?prevValue=2", "", 412, "3", `{"errorCode":101,"message":"Compare failed","cause":"[2 != 3]","index":3}`},
			{"DELETE", "/v2/keys/a?prevIndex=3", "", 200, "4", `{"action":"compareAndDelete","node":{"key":"/a","modifiedIndex":4,"createdIndex":1},"prevNode":{"key":"/a","value":"3","modifiedIndex":3,"createdIndex":1}}`},
			{"PUT", "/v2/keys/a", "value=1&prevIndex=x", 400, "4", `{"errorCode":203,"message":"The given index in POST form is not a number","cause":"prevIndex must be a positive number","index":4}`},
			{"PUT", "/v2/keys/a", "value=1&prevValue=", 400, "4", `{"errorCode":201,"message":"PrevValue is Required in POST form","cause":"prevValue is empty","index":4}`},
		},
		"delete": {
			{"DELETE", "/v2/keys/a", "", 404, "0", `{"errorCode":100,"message":"Key not found","cause":"/a","index":0}`},
			{"PUT", "/v2/keys/a/b", "value=1", 201, "1", `{"action":"set","node":{"key":"/a/b","value":"1","modifiedIndex":1,"createdIndex":1}}`},
			{"DELETE", "/v2/keys/a", "", 403, "1", `{"errorCode":102,"message":"Not a file","cause":"/a","index":1}`},
			{"DELETE", "/v2/keys/a?dir=true", "", 403, "1", `{"errorCode":108,"message":"Directory not empty","cause":"/a","index":1}`},
			{"DELETE", "/v2/keys/a/b", "", 200, "2", `{"action":"delete","node":{"key":"/a/b","modifiedIndex":2,"createdIndex":1},"prevNode":{"key":"/a/b","value":"1","modifiedIndex":1,"createdIndex":1}}`},
			{"DELETE", "/v2/keys/a?dir=true", "", 200, "3", `{"action":"delete","node":{"key":"/a","dir":true,"modifiedIndex":3,"createdIndex":1},"prevNode":{"key":"/a","dir":true,"modifiedIndex":1,"createdIndex":1}}`},
			{"DELETE", "/v2/keys/?recursive=true", "", 403, "3", `{"errorCode":107,"message":"Root is read only","cause":"/","index":3}`},
			{"PUT", "/v2/keys/", "value=1", 403, "3", `{"errorCode":107,"message":"Root is read only","cause":"/","index":3}`},
			{"GET", "/v2/keys/?recursive=true", "", 200, "3", `{"action":"get","node":{"dir":true}}`},
		},
		"refused": {
			{"GET", "/v2/keys/a%00b", "", 400, "0", `{"errorCode":209,"message":"Invalid field","cause":"key \"/a\\x00b\" holds a control character","index":0}`},
			{"GET", "/v2/keys/?recursive=maybe", "", 400, "0", `{"errorCode":209,"message":"Invalid field","cause":"invalid value for \"recursive\"","index":0}`},
			{"GET", "/v2/keys/a?wait=true", "", 400, "0", `{"errorCode":209,"message":"Invalid field","cause":"wait is not supported by this store","index":0}`},
			{"PUT", "/v2/keys/a", "value=1&ttl=5", 400, "0", `{"errorCode":209,"message":"Invalid field","cause":"ttl is not supported by this store","index":0}`},
			{"PUT", "/v2/keys/a", "value=%zz", 400, "0", `{"errorCode":210,"message":"Invalid POST form","cause":"invalid URL escape \"%zz\"","index":0}`},
			{"PUT", "/v2/keys/a", "value=" + strings.Repeat("x", maxBody), 400, "0", `{"errorCode":210,"message":"Invalid POST form","cause":"http: request body too large","index":0}`},
			{"PATCH", "/v2/keys/a", "", 405, "", "Method Not Allowed"},
			{"GET", "/v2/keysmith", "", 404, "", "404 page not found"},
		},
		"unclean paths": {
			{"PUT", "/v2/keys//a/../b", "value=1", 201, "1", `{"action":"set","node":{"key":"/b","value":"1","modifiedIndex":1,"createdIndex":1}}`},
			{"GET", "/v2/keys/%2e%2e/b/", "", 200, "1", `{"action":"get","node":{"key":"/b","value":"1","modifiedIndex":1,"createdIndex":1}}`},
		},
		"about": {
			{"GET", "/health", "", 200, "", `{"health":"true"}`},
			{"GET", "/version", "", 200, "", `{"etcdcluster":"2.3.0","etcdserver":"2.3.0+yaobank"}`},
			{"POST", "/health", "", 405, "", "Method Not Allowed"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(Handler(New()))
			defer server.Close()
			run(t, server, steps)
		})
	}
}

func TestStoreIsBounded(t *testing.T) {
	store := New()
	for i := range maxNodes {
		if _, err := store.Set(fmt.Sprintf("/k%d", i), "", false, Precondition{}); err != nil {
			t.Fatalf("key %d: %v", i, err)
		}
	}
	server := httptest.NewServer(Handler(store))
	defer server.Close()
	response, err := http.PostForm(server.URL+"/v2/keys/more", url.Values{"value": {"x"}})
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusInsufficientStorage {
		t.Errorf("a write to a full store got %s, want 507", response.Status)
	}
	if _, err := store.Delete("/k0", false, false, Precondition{}); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Set("/again", "", false, Precondition{}); err != nil {
		t.Errorf("a write after a delete: %v", err)
	}
}

// Concurrent appends never share a name, and compare-and-swap loses no update.
func TestConcurrentWrites(t *testing.T) {
	const writers, writes = 8, 50
	store := New()
	if _, err := store.Set("/n", "0", false, Precondition{}); err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for range writers {
		group.Go(func() {
			for range writes {
				if _, err := store.Append("/q", "x"); err != nil {
					t.Errorf("append: %v", err)
				}
				for {
					event, err := store.Read("/n", false)
					if err != nil {
						t.Errorf("read: %v", err)
						return
					}
					var n int
					if _, err := fmt.Sscan(*event.Node.Value, &n); err != nil {
						t.Errorf("scan: %v", err)
						return
					}
					if _, err := store.Set("/n", fmt.Sprint(n+1), false, Precondition{Index: event.Node.ModifiedIndex}); err == nil {
						break
					}
				}
			}
		})
	}
	group.Wait()
	queue, err := store.Read("/q", false)
	if err != nil {
		t.Fatal(err)
	}
	counter, err := store.Read("/n", false)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(queue.Node.Nodes); got != writers*writes {
		t.Errorf("%d appended keys, want %d", got, writers*writes)
	}
	if got, want := *counter.Node.Value, fmt.Sprint(writers*writes); got != want {
		t.Errorf("counter = %s, want %s", got, want)
	}
}
