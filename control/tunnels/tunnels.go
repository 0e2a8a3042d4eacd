// Package tunnels keeps the WireGuard public keys of all nodes in one
// ConfigMap that only the control plane may write. It owns the ConfigMap's
// format and its concurrent writing by several replicas. It does not decide
// which node a key belongs to (control/distribute does, by certificate) or who
// needs which key (control/compile).
package tunnels

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/util/retry"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

// KeyLength is the length of a WireGuard public key in bytes.
const KeyLength = 32

// Entry is a node's end of the WireGuard mesh.
type Entry struct {
	PublicKey []byte
	Port      uint16
	Backend   string // "kernel" or "userspace"
}

// entryJSON is an Entry as the ConfigMap has it.
type entryJSON struct {
	PublicKey string `json:"publicKey"`
	Port      uint16 `json:"port"`
	Backend   string `json:"backend"`
}

// Validate returns an error that says what is wrong with the entry.
func (e Entry) Validate() error {
	if len(e.PublicKey) != KeyLength {
		return fmt.Errorf("public key has %d bytes, want %d", len(e.PublicKey), KeyLength)
	}
	if e.Port == 0 {
		return fmt.Errorf("port is missing")
	}
	if e.Backend != "kernel" && e.Backend != "userspace" {
		return fmt.Errorf("backend %q is neither kernel nor userspace", e.Backend)
	}
	return nil
}

// Parse reads the ConfigMap; a nil one is empty. Entries that can't be read are
// left out and told, sorted by node.
func Parse(cm *corev1.ConfigMap) (map[string]Entry, []error) {
	if cm == nil {
		return nil, nil
	}
	entries := make(map[string]Entry, len(cm.Data))
	var problems []error
	nodes := make([]string, 0, len(cm.Data))
	for node := range cm.Data {
		nodes = append(nodes, node)
	}
	slices.Sort(nodes)
	for _, node := range nodes {
		e, err := parseEntry(cm.Data[node])
		if err != nil {
			problems = append(problems, fmt.Errorf("ConfigMap %s, node %s: %w", names.TunnelsConfigMap, node, err))
			continue
		}
		entries[node] = e
	}
	return entries, problems
}

func parseEntry(text string) (Entry, error) {
	var j entryJSON
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return Entry{}, fmt.Errorf("read entry: %w", err)
	}
	key, err := base64.StdEncoding.DecodeString(j.PublicKey)
	if err != nil {
		return Entry{}, fmt.Errorf("read public key: %w", err)
	}
	e := Entry{PublicKey: key, Port: j.Port, Backend: j.Backend}
	return e, e.Validate()
}

func (e Entry) text() (string, error) {
	data, err := json.Marshal(entryJSON{PublicKey: base64.StdEncoding.EncodeToString(e.PublicKey), Port: e.Port, Backend: e.Backend})
	return string(data), err
}

// ErrTaken is a key that is another node's. WireGuard knows peers by their keys:
// two nodes with one would take each other's addresses away.
var ErrTaken = errors.New("the public key is another node's")

// holder is the node that has the key, empty for none.
func holder(cm *corev1.ConfigMap, key []byte) string {
	entries, _ := Parse(cm)
	for node, e := range entries {
		if bytes.Equal(e.PublicKey, key) {
			return node
		}
	}
	return ""
}

// Store writes a node's entry unless it is there already. It leaves other
// nodes' entries as they are, also when another replica writes at the same
// time: the write carries the resource version that was read.
func Store(ctx context.Context, client typedcorev1.ConfigMapInterface, node string, entry Entry) error {
	if err := entry.Validate(); err != nil {
		return fmt.Errorf("store tunnel key of node %s: %w", node, err)
	}
	text, err := entry.text()
	if err != nil {
		return fmt.Errorf("store tunnel key of node %s: %w", node, err)
	}
	err = retry.OnError(retry.DefaultBackoff, retriable, func() error {
		cm, err := client.Get(ctx, names.TunnelsConfigMap, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			_, err = client.Create(ctx, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{
					Name: names.TunnelsConfigMap,
					Labels: map[string]string{
						"app.kubernetes.io/name": "hauberk", "app.kubernetes.io/component": "tunnels",
					},
				},
				Data: map[string]string{node: text},
			}, metav1.CreateOptions{})
			return err
		}
		if err != nil {
			return err
		}
		if cm.Data[node] == text {
			return nil
		}
		if other := holder(cm, entry.PublicKey); other != "" && other != node {
			return fmt.Errorf("%w: node %s has it; if that node is gone, delete its entry from ConfigMap %s", ErrTaken, other, names.TunnelsConfigMap)
		}
		if cm.Data == nil {
			cm.Data = make(map[string]string, 1)
		}
		cm.Data[node] = text
		_, err = client.Update(ctx, cm, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("store tunnel key of node %s: %w", node, err)
	}
	return nil
}

func retriable(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err)
}
