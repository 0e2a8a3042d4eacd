package sidecar

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/proxy/admin"
)

// askToDrain is what the container's preStop hook runs: it asks the sidecar on
// the pod's loopback to drain. It is no request on the health port, because
// anybody who reaches the pod could make that.
func askToDrain(ctx context.Context, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	url := fmt.Sprintf("http://127.0.0.1:%d%s", names.PortAdmin, admin.DrainPath)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return fmt.Errorf("ask to drain: %w", err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("ask the sidecar to drain: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the sidecar answers %s", response.Status)
	}
	_, err = io.Copy(stdout, response.Body)
	return err
}
