package tunnels

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

func entry(b byte) Entry {
	return Entry{PublicKey: bytes.Repeat([]byte{b}, KeyLength), Port: 51871, Backend: "kernel"}
}

func TestStoreKeepsOtherNodes(t *testing.T) {
	clientset := fake.NewClientset()
	client := clientset.CoreV1().ConfigMaps(names.Namespace)
	// The first update meets a write of another replica.
	conflicts := 1
	clientset.PrependReactor("update", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
		if conflicts == 0 {
			return false, nil, nil
		}
		conflicts--
		return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "configmaps"}, names.TunnelsConfigMap, errors.New("changed"))
	})
	for node, e := range map[string]Entry{"node1": entry(1), "node2": entry(2)} {
		if err := Store(t.Context(), client, node, e); err != nil {
			t.Fatal(err)
		}
	}
	if conflicts != 0 {
		t.Error("no write met the conflict")
	}
	writes := len(clientset.Actions())
	if err := Store(t.Context(), client, "node1", entry(1)); err != nil {
		t.Fatal(err)
	}
	for _, a := range clientset.Actions()[writes:] {
		if a.GetVerb() != "get" {
			t.Errorf("an entry that is there already caused %s", a.GetVerb())
		}
	}
	cm, err := client.Get(t.Context(), names.TunnelsConfigMap, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got, problems := Parse(cm)
	if len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
	if diff := cmp.Diff(map[string]Entry{"node1": entry(1), "node2": entry(2)}, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

func TestStoreRefuses(t *testing.T) {
	tests := []struct {
		name  string
		entry Entry
		want  string
	}{
		{"a short key", Entry{PublicKey: []byte{1}, Port: 1, Backend: "kernel"}, "1 bytes"},
		{"no port", Entry{PublicKey: make([]byte, KeyLength), Backend: "kernel"}, "port"},
		{"an unknown backend", Entry{PublicKey: make([]byte, KeyLength), Port: 1, Backend: "magic"}, "magic"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			clientset := fake.NewClientset()
			err := Store(t.Context(), clientset.CoreV1().ConfigMaps(names.Namespace), "node1", tt.entry)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
			if n := len(clientset.Actions()); n != 0 {
				t.Errorf("%d requests were made", n)
			}
		})
	}
}

func TestParseLeavesOutWhatIsBroken(t *testing.T) {
	good, err := entry(7).text()
	if err != nil {
		t.Fatal(err)
	}
	got, problems := Parse(&corev1.ConfigMap{Data: map[string]string{"a": "{", "b": `{"publicKey":"!"}`, "c": good, "d": `{}`}})
	if diff := cmp.Diff(map[string]Entry{"c": entry(7)}, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if len(problems) != 3 {
		t.Errorf("problems: got %v, want 3", problems)
	}
}

// TestStoreRefusesAnotherNodesKey: a node that publishes another's public key
// would take the other's pods off the network.
func TestStoreRefusesAnotherNodesKey(t *testing.T) {
	client := fake.NewClientset().CoreV1().ConfigMaps(names.Namespace)
	if err := Store(t.Context(), client, "victim", entry(1)); err != nil {
		t.Fatal(err)
	}
	if err := Store(t.Context(), client, "thief", entry(1)); !errors.Is(err, ErrTaken) {
		t.Errorf("got %v, want ErrTaken", err)
	}
	moved := entry(1)
	moved.Port = 1
	if err := Store(t.Context(), client, "victim", moved); err != nil {
		t.Errorf("the node's own key: %v", err)
	}
	cm, err := client.Get(t.Context(), names.TunnelsConfigMap, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := Parse(cm); len(got) != 1 {
		t.Errorf("entries: %v", got)
	}
}
