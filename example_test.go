// Copyright 2026 The singleflight Authors.
// Use of this source code is governed by the BSD-style license in LICENSE.

package singleflight_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/singleflight"
)

// A hundred clients miss a cache at once, and the backend gets one request instead of a
// hundred. fn looks into the cache again, as another call can have filled it. It sets a
// timeout, as its context has no deadline. It recovers from its panics, as one would
// crash the process if all clients had left.
func Example_handler() {
	var pages singleflight.GroupOf[string]
	var cache sync.Map // from path to page; a real cache has limits
	fetch := func(_ context.Context, path string) (string, error) {
		fmt.Println("request:", path)
		return "the news", nil
	}

	get := func(ctx context.Context, path string) (string, error) {
		if page, ok := cache.Load(path); ok {
			return page.(string), nil
		}
		load := func(ctx context.Context) (page string, err error) {
			defer func() {
				if r := recover(); r != nil {
					err = fmt.Errorf("panic: %v\n\n%s", r, debug.Stack())
				}
			}()
			if page, ok := cache.Load(path); ok {
				return page.(string), nil
			}
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			page, err = fetch(ctx, path)
			if err == nil {
				cache.Store(path, page)
			}
			return page, err
		}
		return pages.DoContext(ctx, path, load)
	}
	handler := func(w http.ResponseWriter, r *http.Request) {
		page, err := get(r.Context(), r.URL.Path)
		if err != nil {
			http.Error(w, "cannot get the page", http.StatusBadGateway)
			return
		}
		fmt.Fprint(w, page)
	}

	var clients sync.WaitGroup
	for range 100 {
		clients.Go(func() {
			r := httptest.NewRequest(http.MethodGet, "/news", nil)
			handler(httptest.NewRecorder(), r)
		})
	}
	clients.Wait()
	// Output: request: /news
}

// Joined by + alone, the keys of these two callers would be the same, and one tenant
// would get the file of the other. Quoting keeps the parts of a key apart. Strings are
// quoted with %q. Integers take %d, as many of them look the same under %q.
func Example_compoundKey() {
	key := func(tenant, file string, revision int) string {
		return fmt.Sprintf("%q %q %d", tenant, file, revision)
	}

	fmt.Println(key("acme", "2/plan", 7))
	fmt.Println(key("acme2", "/plan", 7))
	// Output:
	// "acme" "2/plan" 7
	// "acme2" "/plan" 7
}

// Outside a bubble, a test cannot know when callers have joined a call. In a bubble,
// synctest.Wait returns when they have: all of them wait, and so does fn.
func Example_testing() {
	testJoin := func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var users singleflight.GroupOf[string]
			loads, answer := 0, make(chan string)
			load := func() (string, error) {
				loads++
				return <-answer, nil
			}
			for range 10 {
				go users.Do("42", load)
			}
			synctest.Wait() // until all callers have joined
			answer <- "Ann"
			synctest.Wait() // until all callers have returned
			if loads != 1 {
				t.Errorf("loads: got %d, want 1", loads)
			}
			fmt.Println("loads:", loads)
		})
	}

	testJoin(new(testing.T)) // a test gets its own t
	// Output: loads: 1
}

// A service that waits for its callers alone shuts down while fns are still running,
// since fns can outlive their callers. So each fn counts itself, unless the service is
// closed. One mutex guards both, so that no fn begins once Close waits.
func Example_shutdown() {
	var group singleflight.GroupOf[string]
	var mu sync.Mutex
	var closed bool
	var running sync.WaitGroup
	begin := func() error {
		mu.Lock()
		defer mu.Unlock()
		if closed {
			return errors.New("closed")
		}
		running.Add(1)
		return nil
	}
	get := func(ctx context.Context, load func()) error {
		_, err := group.DoContext(ctx, "key", func(context.Context) (string, error) {
			if err := begin(); err != nil {
				return "", err
			}
			defer running.Done()
			load()
			return "value", nil
		})
		return err
	}
	closeService := func() {
		mu.Lock()
		closed = true
		mu.Unlock()
		running.Wait()
	}

	ctx, hangUp := context.WithCancel(context.Background())
	proceed := make(chan struct{})
	fmt.Println("caller:", get(ctx, func() {
		hangUp()
		<-proceed
		fmt.Println("fn is done")
	}))
	close(proceed)
	closeService()
	fmt.Println("late caller:", get(context.Background(), nil))
	// Output:
	// caller: context canceled
	// fn is done
	// late caller: closed
}

// The callers of a call get the same slice, so one that sorts it sorts it for all. A
// caller that changes a value clones it first. For maps, use maps.Clone.
func Example_clone() {
	var group singleflight.GroupOf[[]string]
	joined := make(chan struct{})
	load := func() ([]string, error) {
		<-joined
		return []string{"sync", "go", "cache"}, nil
	}

	one, other := group.DoChan("tags", load), group.DoChan("tags", load)
	close(joined)
	tags := slices.Clone((<-one).Val)
	slices.Sort(tags)
	fmt.Println("sorted:", tags)
	fmt.Println("other caller:", (<-other).Val)
	// Output:
	// sorted: [cache go sync]
	// other caller: [sync go cache]
}

// A caller misses the cache, but asks only after the call that fills it has ended. So
// it starts a call of its own. fn looks into the cache again, and does not load the
// value a second time.
func ExampleGroupOf_Do() {
	var group singleflight.GroupOf[string]
	var cache sync.Map // from id to name
	loads := 0
	name := func(id string, missed func()) (string, error) {
		if name, ok := cache.Load(id); ok {
			return name.(string), nil
		}
		missed()
		return group.Do(id, func() (string, error) {
			if name, ok := cache.Load(id); ok {
				return name.(string), nil
			}
			loads++
			cache.Store(id, "Ann")
			return "Ann", nil
		})
	}

	another := func() { name("42", func() {}) } // comes and goes in the gap
	fmt.Println(name("42", another))
	fmt.Println("loads:", loads)
	// Output:
	// Ann <nil>
	// loads: 1
}

// The work must go on when its caller stops waiting. So fn makes a context of its own,
// with the values of the caller's and a timeout. It recovers from its panics, as one
// would crash the process.
func ExampleGroupOf_DoChan() {
	var group singleflight.GroupOf[string]
	report := func(
		ctx context.Context, load func(context.Context) string,
	) (string, error) {
		results := group.DoChan("report", func() (v string, err error) {
			defer func() {
				if r := recover(); r != nil {
					err = fmt.Errorf("panic: %v\n\n%s", r, debug.Stack())
				}
			}()
			ctx := context.WithoutCancel(ctx)
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			return load(ctx), nil
		})
		select {
		case r := <-results:
			return r.Val, r.Err
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}

	ctx, hangUp := context.WithCancel(context.Background())
	hangUp()
	answer, stored := make(chan string), make(chan string)
	_, err := report(ctx, func(context.Context) string {
		stored <- <-answer
		return "the report"
	})
	fmt.Println("caller:", err)
	answer <- "the report"
	fmt.Println("stored:", <-stored)
	// Output:
	// caller: context canceled
	// stored: the report
}

// A forgotten fn still runs, and would store a value that is out of date. So fn stores
// nothing if the revision has changed since it began.
func ExampleGroupOf_Forget() {
	var group singleflight.GroupOf[int]
	var mu sync.Mutex // guards cache and revision
	cache, revision := make(map[string]int), 0
	get := func(key string, load func() (int, error)) (int, error) {
		return group.Do(key, func() (int, error) {
			mu.Lock()
			v, ok := cache[key]
			before := revision
			mu.Unlock()
			if ok {
				return v, nil
			}
			v, err := load()
			mu.Lock()
			defer mu.Unlock()
			if err == nil && revision == before {
				cache[key] = v
			}
			return v, err
		})
	}
	invalidate := func(key string) {
		mu.Lock()
		defer mu.Unlock()
		revision++
		delete(cache, key)
		group.Forget(key)
	}

	newPrice := func() (int, error) { return 12, nil }
	oldPrice := func() (int, error) {
		invalidate("price") // it changes while fn reads it
		fmt.Println(get("price", newPrice))
		return 10, nil
	}
	fmt.Println(get("price", oldPrice))
	fmt.Println(get("price", newPrice))
	// Output:
	// 12 <nil>
	// 10 <nil>
	// 12 <nil>
}

// Nothing ends this fn when it is stuck, as it heeds no context. A timer forgets the
// key, and the next caller starts a new call. If the timer fires when fn has just
// ended, it can forget the next call instead, and then one more call starts.
func ExampleGroupOf_Forget_timer() {
	var group singleflight.GroupOf[string]
	forgotten := make(chan bool, 1)
	report := func(read func() string) <-chan singleflight.ResultOf[string] {
		return group.DoChan("report", func() (string, error) {
			timer := time.AfterFunc(time.Millisecond, func() {
				group.Forget("report")
				forgotten <- true
			})
			defer timer.Stop()
			return read(), nil
		})
	}

	answer := make(chan string)
	stuck := report(func() string { return <-answer })
	<-forgotten
	next := <-report(func() string { return "the report" })
	fmt.Println("next caller:", next.Val)
	answer <- "a late report"
	fmt.Println("stuck caller:", (<-stuck).Val)
	// Output:
	// next caller: the report
	// stuck caller: a late report
}

// A caller that must see its own write can join a call that read before it. So fn
// forgets its key before it reads: no caller joins after that. The lock lets one fn of
// the key read at a time, so that the callers that come meanwhile share the next call.
func ExampleGroupOf_Forget_ownWrite() {
	var group singleflight.GroupOf[int64]
	var mu sync.Mutex // of the key "balance"
	balance := func(read func() int64) <-chan singleflight.ResultOf[int64] {
		return group.DoChan("balance", func() (int64, error) {
			mu.Lock()
			defer mu.Unlock()
			group.Forget("balance")
			return read(), nil
		})
	}

	var stored atomic.Int64
	reading, proceed := make(chan struct{}), make(chan struct{})
	early := balance(func() int64 {
		v := stored.Load()
		close(reading)
		<-proceed
		return v
	})
	<-reading
	stored.Store(12)
	own := balance(stored.Load)
	close(proceed)
	fmt.Println("early caller:", (<-early).Val)
	fmt.Println("caller that wrote:", (<-own).Val)
	// Output:
	// early caller: 0
	// caller that wrote: 12
}

// Forget by a caller that gives up would also forget a joined call, and the next caller
// would repeat work that is under way. ForgetUnshared does not.
func ExampleGroupOf_ForgetUnshared() {
	var group singleflight.GroupOf[string]
	answer := make(chan struct{})
	lookup := func(host string) <-chan singleflight.ResultOf[string] {
		return group.DoChan(host, func() (string, error) {
			<-answer
			return "the address of " + host, nil
		})
	}

	lookup("a.example")
	fmt.Println("forgotten:", group.ForgetUnshared("a.example"))

	lookup("b.example")
	joiner := lookup("b.example")
	fmt.Println("forgotten:", group.ForgetUnshared("b.example"))
	close(answer)
	fmt.Println("joiner:", (<-joiner).Val)
	// Output:
	// forgotten: true
	// forgotten: false
	// joiner: the address of b.example
}

// Shared is true for every caller of a joined call, also for the one that started it.
// To count the callers that were spared the work, each sets a flag in its own fn. The
// flag is atomic, as fn may still run when its caller has left.
func ExampleResult() {
	var group singleflight.Group
	var worked [10]atomic.Bool
	var results [10]<-chan singleflight.Result
	joined := make(chan struct{})
	for i := range results {
		results[i] = group.DoChan("page", func() (any, error) {
			worked[i].Store(true)
			<-joined
			return "the page", nil
		})
	}
	close(joined)

	shared, spared := 0, 0
	for i := range results {
		if r := <-results[i]; r.Shared {
			shared++
		}
		if !worked[i].Load() {
			spared++
		}
	}
	fmt.Println("shared:", shared)
	fmt.Println("spared:", spared)
	// Output:
	// shared: 10
	// spared: 9
}

// A timeout can be fn's or the caller's, and errors.Is cannot tell which. So fn marks
// its errors. It sets a timeout, as its context has no deadline, even if every caller's
// has one, and is not canceled while callers keep coming.
func ExampleGroupOf_DoContext_timeout() {
	var group singleflight.GroupOf[string]
	errBackend := errors.New("backend failed")
	ask := func(ctx context.Context, limit time.Duration) {
		load := func(ctx context.Context) (string, error) {
			ctx, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			<-ctx.Done() // a backend that does not answer
			return "", fmt.Errorf("%w: %w", errBackend, ctx.Err())
		}
		_, err := group.DoContext(ctx, "report", load)
		switch {
		case errors.Is(err, errBackend):
			fmt.Println("fn's own:", err)
		case err != nil:
			fmt.Println("the caller's:", err)
		}
	}

	ask(context.Background(), time.Millisecond)
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	ask(ctx, time.Hour)
	// Output:
	// fn's own: backend failed: context deadline exceeded
	// the caller's: context deadline exceeded
}

// A caller that joins late gets what is left of fn's time limit. So fn limits each
// attempt, not the call, and tries again while its context lives. The deadlines of the
// callers end it: its context is canceled when all have left.
func ExampleGroupOf_DoContext_retry() {
	var group singleflight.GroupOf[string]
	get := func(
		ctx context.Context, ask func(context.Context) (string, error),
	) (string, error) {
		load := func(ctx context.Context) (string, error) {
			for {
				attempt, cancel := context.WithTimeout(ctx, time.Millisecond)
				v, err := ask(attempt)
				cancel()
				late := errors.Is(err, context.DeadlineExceeded)
				if !late || ctx.Err() != nil {
					return v, err
				}
			}
		}
		return group.DoContext(ctx, "report", load)
	}

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	attempts := 0
	fmt.Println(get(ctx, func(ctx context.Context) (string, error) {
		if attempts++; attempts < 3 {
			<-ctx.Done()
			return "", ctx.Err()
		}
		return "the report", nil
	}))
	fmt.Println("attempts:", attempts)
	// Output:
	// the report <nil>
	// attempts: 3
}

// Files that include one another would wait for each other forever in Do, or with the
// context of the first caller. fn passes on the context that it was given, so a cycle
// is reported as ErrRecursive.
func ExampleGroupOf_DoContext_recursion() {
	includes := map[string][]string{
		"app.conf":   {"db.conf", "log.conf"},
		"db.conf":    {"log.conf"},
		"left.conf":  {"right.conf"},
		"right.conf": {"left.conf"},
	}

	var group singleflight.GroupOf[int]
	var size func(ctx context.Context, name string) (int, error)
	size = func(ctx context.Context, name string) (int, error) {
		return group.DoContext(ctx, name, func(ctx context.Context) (int, error) {
			sum := 1
			for _, include := range includes[name] {
				n, err := size(ctx, include)
				if err != nil {
					return 0, fmt.Errorf("%s: %w", name, err)
				}
				sum += n
			}
			return sum, nil
		})
	}

	ctx := context.Background()
	fmt.Println(size(ctx, "app.conf"))
	_, err := size(ctx, "left.conf")
	fmt.Println("cycle:", errors.Is(err, singleflight.ErrRecursive))
	// Output:
	// 4 <nil>
	// cycle: true
}

// A goroutine that fn starts is refused fn's key if its context comes from fn's, even
// without its cancellation: fn would wait for itself if it waited for the goroutine. A
// context that comes from the request is not.
func ExampleGroupOf_DoContext_background() {
	var group singleflight.GroupOf[string]
	errs := make(chan error)
	refresh := func(ctx context.Context) {
		next := func(context.Context) (string, error) { return "the next news", nil }
		_, err := group.DoContext(ctx, "news", next)
		errs <- err
	}

	request := context.Background()
	group.DoContext(request, "news", func(ctx context.Context) (string, error) {
		go refresh(context.WithoutCancel(ctx))
		fmt.Println(<-errs)
		go refresh(context.WithoutCancel(request))
		return "the news", nil
	})
	fmt.Println(<-errs)
	// Output:
	// singleflight: call would wait for itself
	// <nil>
}

// A recovered panic of fn is a *PanicError, so comparing it with http.ErrAbortHandler
// fails: errors.Is finds that. A value that is not a *PanicError does not come from fn.
func ExamplePanicError() {
	var group singleflight.GroupOf[*regexp.Regexp]
	compile := func(pattern string) (re *regexp.Regexp, err error) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			e, _ := v.(error)
			var p *singleflight.PanicError
			switch {
			case errors.Is(e, http.ErrAbortHandler):
				panic(http.ErrAbortHandler) // net/http compares it
			case !errors.As(e, &p):
				panic(v)
			}
			inFn := bytes.Contains(p.Stack(), []byte("regexp.MustCompile"))
			fmt.Println("panic:", p.Value())
			fmt.Println("in MustCompile:", inFn)
			err = errors.New("bad pattern")
		}()
		return group.Do(pattern, func() (*regexp.Regexp, error) {
			return regexp.MustCompile(pattern), nil
		})
	}

	fmt.Println(compile("a("))
	// Output:
	// panic: regexp: Compile(`a(`): error parsing regexp: missing closing ): `a(`
	// in MustCompile: true
	// <nil> bad pattern
}
